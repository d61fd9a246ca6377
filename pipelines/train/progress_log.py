"""`progress.jsonl` has every report and picture of a run, a line each; `progress.sent`, how many bytes MLflow has.

Reports reach the disk first, and training never waits for MLflow. What MLflow did not take is sent again later, also
by the next command.
"""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.files import write_bytes
from glo_core.common.records import Record, require_format
from pipelines.common.tracking import Tracker

Line = dict[str, Any]
"""`time_ms` since 1970, `images_seen`, and either metrics or `picture`, a path in the run"""
_LINES_AT_ONCE = 1000
"""Lines that are sent before `progress.sent` is written"""


class ProgressHead(Record):
    """The first line of `progress.jsonl`."""

    format: ClassVar[str] = "glo-progress"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory"


_HEAD = f'{{"format": "{ProgressHead.format}", "format_version": {ProgressHead.format_version}}}\n'.encode()


class ProgressLog:
    """The reports and pictures of one run, for one process at a time."""

    def __init__(self, run: Path) -> None:
        """Open the files in the directory `run`, or create them.

        Raises:
            CheckpointError: if `progress.jsonl` is of another format or version.
        """
        self.run = run
        self._path, self._sent_path = run / "progress.jsonl", run / "progress.sent"
        run.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b", buffering=0) as file:
            _truncate_to_whole_lines(file)
            if not self._path.stat().st_size:
                file.write(_HEAD)
        first = _require_format(self._path)
        if not self._sent_path.exists():
            self._set_sent(first)
        # After a crash of the machine, progress.sent may count lines that never reached the disk.
        self.sent = max(first, min(self._read_sent(), self._path.stat().st_size))
        self._pending: list[Line] = []

    def add(self, lines: list[Line]) -> None:
        """Write `lines`, after those that the disk had no room for; on a full disk, they wait for the next call."""
        self._pending += lines
        data = memoryview("".join(json.dumps(line) + "\n" for line in self._pending).encode())
        with self._path.open("ab", buffering=0) as file:
            size = self._path.stat().st_size
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(size)  # Whole lines or none.
            else:
                self._pending = []

    @property
    def behind(self) -> bool:
        """Whether MLflow lacks a line."""
        return self._path.stat().st_size > self.sent

    def send(self, tracker: Tracker) -> None:
        """Send what MLflow lacks, oldest first; a picture that MLflow refuses is skipped.

        Raises:
            UserError: if MLflow does not answer; `progress.sent` counts what it took before.
        """
        for lines, end in self._unsent():
            reports = [line for line in lines if "picture" not in line]
            tracker.history([(line.pop("time_ms"), line.pop("images_seen"), line) for line in reports])
            for line in lines:
                if "picture" in line:
                    with contextlib.suppress(Exception):  # The file stays, and reports do not wait for it.
                        tracker.image(self.run / line["picture"], line["images_seen"])
            self.sent = end
            self._set_sent(end)

    def _unsent(self) -> Iterator[tuple[list[Line], int]]:
        """Lines that are not sent, in chunks, each with the offset in the file where it ends."""
        end = self.sent
        with self._path.open("rb") as file:
            file.seek(end)
            # Half a line at the end is one that `add` is writing.
            whole_lines = itertools.takewhile(lambda line: line.endswith(b"\n"), file)
            while lines := list(itertools.islice(whole_lines, _LINES_AT_ONCE)):
                end += sum(map(len, lines))
                try:
                    yield [json.loads(line) for line in lines], end
                except ValueError:
                    raise CheckpointError(f"{self._path}: has a line that is not JSON before byte {end}") from None

    def _read_sent(self) -> int:
        """What `progress.sent` says; 0 if it is damaged: MLflow then gets lines twice, which change nothing."""
        text = self._sent_path.read_text(errors="replace").strip()
        return int(text) if text.isdecimal() else 0

    def _set_sent(self, end: int) -> None:
        write_bytes(self._sent_path, str(end).encode())


def _truncate_to_whole_lines(file: Any) -> None:
    """Drop the half line that a killed process may leave."""
    file.seek(0)
    content = file.read()
    size = content.rfind(b"\n") + 1
    if size < len(content):
        file.truncate(size)


def _require_format(path: Path) -> int:
    """Check the first line of `path`; returns its length in bytes."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        values = json.loads(line)
    except ValueError:
        values = {}
    require_format(values if isinstance(values, dict) else {}, ProgressHead, path)
    return len(line)


def keep_sending(progress_log: ProgressLog, tracker: Tracker, ended: threading.Event, every_s: float = 1.0) -> str:
    """Send every `every_s` seconds until `ended` is set, and once more then.

    Returns:
        Why the last attempt failed; "" if it succeeded.
    """
    while True:
        last, failure = ended.wait(every_s), ""
        try:
            progress_log.send(tracker)
        except Exception as error:  # Whatever MLflow's store raises, training goes on.
            failure = str(error)
        if last:
            return failure
