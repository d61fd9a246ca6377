"""Lines of a progress log on their way to MLflow: what it refuses is told apart from its absence."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from glo_core.common.errors import UserError, one_line
from pipelines.common.progress_lines import FILE_KINDS, Entry, Line, kind_of, metrics_of
from pipelines.common.tracking import Tracker

log = logging.getLogger("glo.progress")


class Delivery:
    """Sends lines that name files of one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.refuses_files = False
        """Whether MLflow's artifacts could not be written; each try may cost seconds, and the next command tries"""

    def deliver(self, tracker: Tracker, entries: Sequence[Entry]) -> list[int]:
        """Send `entries` in their order, neighboring metrics in one request.

        Returns:
            The offsets of those that MLflow refuses, although it answers.

        Raises:
            UserError: if MLflow does not answer.
        """
        refused = []
        for is_metrics, group in itertools.groupby(entries, key=lambda entry: kind_of(entry.line) is None):
            batch = list(group)
            for part in [batch] if is_metrics else [[entry] for entry in batch]:
                refused += self._deliver_together(tracker, part)
        return refused

    def _deliver_together(self, tracker: Tracker, entries: Sequence[Entry]) -> list[int]:
        is_file = kind_of(entries[0].line) in FILE_KINDS
        if is_file and self.refuses_files:
            return [entry.offset for entry in entries]
        try:
            self._tell(tracker, [entry.line for entry in entries])
        except Exception as error:  # Artifact stores raise errors of their own.
            if not tracker.answers():
                raise error if isinstance(error, UserError) else UserError(f"MLflow: {one_line(error)}") from None
            if len(entries) > 1:
                return [offset for entry in entries for offset in self._deliver_together(tracker, [entry])]
            return self._deliver_again(tracker, entries[0], is_file)
        return []

    def _deliver_again(self, tracker: Tracker, entry: Entry, is_file: bool) -> list[int]:
        """Send one line a second time, since MLflow may have been away for a moment only."""
        try:
            self._tell(tracker, [entry.line])
        except Exception as error:
            log.warning("MLflow does not take %s (%s); the next command sends it again", _name(entry), one_line(error))
            self.refuses_files |= is_file
            return [entry.offset]
        return []

    def _tell(self, tracker: Tracker, lines: Sequence[Line]) -> None:
        """Hand `lines`, of one kind, to MLflow; a line that names a file that cannot be sent is skipped."""
        line, kind = lines[0], kind_of(lines[0])
        match kind:
            case None:
                tracker.history([metrics_of(line) for line in lines])
            case "picture":
                if self._can_send(line[kind], is_picture=True):
                    tracker.image(self.directory / line[kind], line.get("images_seen", 0))
            case "artifact":
                if self._can_send(line[kind], is_picture=False):
                    tracker.artifact(self.directory / line[kind])
            case "params":
                tracker.params(line[kind])
            case "tags":
                tracker.tags(line[kind])
            case "inputs":
                tracker.link(line[kind])
            case "dataset":
                tracker.dataset(**line[kind])
            case "status":
                tracker.finish(line[kind])

    def _can_send(self, name: str, *, is_picture: bool) -> bool:
        """Whether the file `name` lies in the directory and is whole; a warning says why not."""
        path = self.directory / name
        try:
            if not path.resolve().is_relative_to(self.directory.resolve()):
                raise OSError("it lies outside of this directory")
            if not path.is_file():
                raise OSError("it is gone")
            if is_picture:
                with Image.open(path) as picture:
                    picture.verify()
        except Exception as error:  # Pillow raises errors of many kinds.
            log.warning("%s: MLflow is not sent %s: %s", self.directory, name, one_line(error))
            return False
        return True


def _name(entry: Entry) -> str:
    """What an entry is, for people."""
    kind = kind_of(entry.line)
    return str(entry.line[kind]) if kind in FILE_KINDS else f"a line of {kind or 'metrics'}"
