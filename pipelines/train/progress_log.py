"""`progress.jsonl`: every report and picture of a run, a line each; `progress.sent`: how far MLflow has them.

Training writes here and waits for nobody. What MLflow did not take is offered again, also by the next command.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glo_core.common.files import write_bytes
from pipelines.common.tracking import Tracker

Line = dict[str, Any]
"""`time_ms` since 1970, `images_seen`, and either metrics or `picture`, a path in the run"""
_AT_ONCE = 1000


class ProgressLog:
    """The reports of one run, on disk before they are anywhere else."""

    def __init__(self, run: Path) -> None:
        """Go on with the files in `run`."""
        self.run = run
        self._path, self._mark = run / "progress.jsonl", run / "progress.sent"
        run.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b", buffering=0)
        _drop_cut_line(self._file)
        if not self._mark.exists():
            self._set_sent(0)
        # After a crash of the machine the mark may be of lines that never reached the disk.
        self.sent = min(int(self._mark.read_text()), self._path.stat().st_size)
        self._waiting: list[Line] = []

    def add(self, lines: list[Line]) -> None:
        """Write `lines`, and those that a full disk had no room for before."""
        self._waiting += lines
        size = self._path.stat().st_size
        try:
            data = memoryview("".join(json.dumps(line) + "\n" for line in self._waiting).encode())
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(size)  # Whole lines or none.
        else:
            self._waiting = []

    @property
    def behind(self) -> bool:
        """Whether there is something that MLflow does not have."""
        return self._path.stat().st_size > self.sent

    def send(self, tracker: Tracker) -> None:
        """Send what MLflow does not have, oldest first; a picture that it does not take is left out.

        Raises:
            UserError: if it does not answer; what it took before is marked as sent.
        """
        for lines, end in self._unsent():
            reports = [line for line in lines if "picture" not in line]
            tracker.history([(line.pop("time_ms"), line.pop("images_seen"), line) for line in reports])
            for line in lines:
                if "picture" in line:
                    with contextlib.suppress(Exception):  # The file stays; reports must not wait for a picture.
                        tracker.image(self.run / line["picture"], line["images_seen"])
            self.sent = end
            self._set_sent(end)

    def _unsent(self) -> Iterator[tuple[list[Line], int]]:
        """Lines that are not sent, some at a time, and where in the file they end."""
        with self._path.open("rb") as file:
            file.seek(self.sent)
            while lines := [line for _ in range(_AT_ONCE) if (line := file.readline()).endswith(b"\n")]:
                yield [json.loads(line) for line in lines], file.tell()

    def _set_sent(self, end: int) -> None:
        write_bytes(self._mark, str(end).encode())


def _drop_cut_line(file: Any) -> None:
    """A killed process may leave half a line."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)


def keep_sending(progress_log: ProgressLog, tracker: Tracker, ended: threading.Event, every_s: float = 1.0) -> str:
    """Send until `ended`, and once more then; returns why the last try failed, "" if it did not."""
    while True:
        last, complaint = ended.wait(every_s), ""
        try:
            progress_log.send(tracker)
        except Exception as error:  # Whatever MLflow's store raises: training must not die of its tracker.
            complaint = str(error)
        if last:
            return complaint
