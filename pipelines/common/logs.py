"""What a job says about its progress: loggers `glo.<stage>`, shown on stderr as `stage: message`."""

import logging
import sys

from glo_core.common.credentials import redact


def configure(job: str) -> None:
    """Show messages of `glo.*` from INFO on, and warnings of other loggers; a second call changes nothing.

    Args:
        job: heads the messages that belong to no stage.
    """
    logger = logging.getLogger("glo")
    if not any(isinstance(handler, _ProgressHandler) for handler in logger.handlers):
        handler = _ProgressHandler()
        handler.setFormatter(_StageFormatter(job))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


class _StageFormatter(logging.Formatter):
    """Formats a message as `stage: message`, without secrets of the URIs in it."""

    def __init__(self, job: str) -> None:
        super().__init__("%(message)s")
        self.job = job

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.name.removeprefix('glo').removeprefix('.') or self.job}: {super().format(record)}"
        return redact(line)


class _ProgressHandler(logging.Handler):
    """Writes lines to stderr, above the progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
