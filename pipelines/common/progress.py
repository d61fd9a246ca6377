"""What a command tells MLflow of its work: to its log on disk first, then to MLflow, which nothing waits for."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glo_core.common.errors import UserError, one_line
from glo_core.common.location import Location
from pipelines.common.progress_log import ProgressLog
from pipelines.common.tracking import Tracker, was_reached
from pipelines.common.tracking_config import TrackingConfig

_PAUSE_S = 30.0
"""After MLflow did not answer, until it is tried again, at least"""
_PAUSE_PER_WAIT = 20.0
"""Seconds of pause for each second that the work has waited for MLflow in vain: at most a twentieth of its time"""


class Progress:
    """The log of a stage's directory, and the MLflow run that it is sent to."""

    def __init__(
        self, config: TrackingConfig, root: Path | Location, name: str, directory: Path, run_id: str | None = None
    ) -> None:
        """Open the log in `directory`; nothing is sent before `connect` or `send`.

        Args:
            root: home of the default MLflow database.
            name: of the stage.
            run_id: of the MLflow run of an earlier command; None takes the one that the log names.

        Raises:
            CheckpointError: if the log is of another format or version.
        """
        self.log = ProgressLog(directory)
        self._config, self._root, self._name = config, root, name
        self._run_id = run_id or self.log.run_id
        self._tracker: Tracker | None = None
        self._try_again, self._warned = 0.0, False
        self._logger = logging.getLogger(f"glo.{name}")

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None if MLflow has not been reached yet."""
        return self._tracker.run_id if self._tracker is not None else self._run_id

    def connect(self) -> None:
        """Open the MLflow run for the work of this command.

        Raises:
            UserError: if MLflow does not answer, and never answered this stage or this process before: its address
                may be a mistake. Otherwise the work goes on, and is sent later.
        """
        begin = time.monotonic()
        try:
            self._tracker = Tracker.start(self._config, self._root, name=self._name, run_id=self._run_id)
        except UserError as error:
            if self._run_id is None and not self.log.begun and not was_reached(self._config, self._root):
                raise
            self._away(error, time.monotonic() - begin)

    # ---------------------------------------------------------------- what is told

    def metrics(self, metrics: Mapping[str, float], images_seen: int = 0) -> None:
        """Tell metrics at `images_seen`."""
        self._tell({"images_seen": images_seen, **metrics})

    def picture(self, path: Path, images_seen: int = 0) -> None:
        """Show a picture, a file in the directory, in the run's page as part of a series."""
        self._tell({"images_seen": images_seen, "picture": str(path.relative_to(self.log.directory))})

    def artifact(self, path: Path) -> None:
        """Keep a file of the directory."""
        self._tell({"artifact": str(path.relative_to(self.log.directory))})

    def dataset(self, path: Path | Location, digest: str, context: str) -> None:
        """Name a dataset, or another result of a stage, that the run uses or makes (`context` says as what)."""
        self._tell({"dataset": {"path": str(path), "digest": digest, "context": context}})

    def describe(
        self,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        inputs: Mapping[str, str | None] | None = None,
    ) -> None:
        """Tell what the work is.

        Args:
            params: the (nested) settings.
            tags: what does not decide the result.
            inputs: MLflow ids of the runs whose outputs this one uses, by what each output is.
        """
        names = {"glo.job": self._name} | _as_text(tags)
        self._tell({"tags": names}, {"inputs": dict(inputs or {})}, {"params": _as_text(params)})

    def finish(self, status: str) -> bool:
        """Tell how the work ended: FINISHED, KILLED (stopped on request) or FAILED. Whether MLflow answers."""
        self._try_again = math.inf
        self._tell({"status": status})
        answered = self.try_to_send()
        if self._tracker is not None:
            self._tracker.leave()
        return answered

    # ---------------------------------------------------------------- sending

    def _tell(self, *lines: dict[str, Any]) -> None:
        now = int(time.time() * 1000)
        self.log.add([{"time_ms": now} | line for line in lines])
        if time.monotonic() >= self._try_again:
            self.try_to_send()

    def try_to_send(self) -> bool:
        """Send what MLflow lacks, or warn that it waits; whether it was sent."""
        begin = time.monotonic()
        try:
            self.send()
        except Exception as error:  # Whatever MLflow's store or a full disk raises: the work goes on.
            self._away(error, time.monotonic() - begin)
            return False
        return True

    def send(self) -> None:
        """Send what MLflow lacks.

        Raises:
            UserError: if MLflow does not answer.
        """
        if self._tracker is None:
            self._tracker = Tracker.reopen(self._config, self._root, name=self._name, run_id=self._run_id)
        self.log.send(self._tracker)

    def _away(self, error: Exception, waited_s: float) -> None:
        if not self._warned:
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            self._logger.warning("%s; the work goes on, and the next command sends what MLflow misses", reason)
        self._warned = True
        self._try_again = max(self._try_again, time.monotonic() + max(_PAUSE_S, _PAUSE_PER_WAIT * waited_s))


def _as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as JSON has them: what is no number, text, bool or None becomes text."""
    return {
        key: _as_text(value)
        if isinstance(value, Mapping)
        else (value if isinstance(value, str | int | float | bool | None) else str(value))
        for key, value in values.items()
    }


@contextlib.contextmanager
def failure_ends(end: Callable[[str], object]) -> Iterator[None]:
    """Call `end` with the status of a run whose work, the block, does not come to its end: KILLED or FAILED."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        end("KILLED")
        raise
    except BaseException:
        end("FAILED")
        raise
