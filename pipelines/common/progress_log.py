"""`progress.jsonl`: what a stage tells MLflow, a line each; `progress.sent`: what MLflow has of it.

A stage writes to the disk first, and its work never waits for MLflow. What MLflow did not take is sent later, also by
the next command.
"""

import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.records import Record, read_record, require_format, write_record
from pipelines.common.delivery import Delivery
from pipelines.common.progress_lines import FILE_KINDS, Entry, Line, kind_of, parse_line
from pipelines.common.tracking import Tracker

_LINES_AT_ONCE = 1000
"""Lines that are sent before `progress.sent` is written"""
LOG_FILE = "progress.jsonl"
SENT_FILE = "progress.sent"


class ProgressHead(Record):
    """The first line of `progress.jsonl`."""

    format: ClassVar[str] = "glo-progress"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory"


@dataclass(frozen=True, kw_only=True)
class SentRecord(Record):
    """`progress.sent`: how much of `progress.jsonl` an MLflow run has."""

    format: ClassVar[str] = "glo-progress-sent"

    run_id: str | None = None
    """Of the MLflow run; None before there is one"""
    bytes: int = 0
    """Length of the lines that were sent to it, from the start of the file"""
    refused: tuple[int, ...] = ()
    """Offsets of lines among them that MLflow refused; the next command sends them again"""


_HEAD = f'{{"format": "{ProgressHead.format}", "format_version": {ProgressHead.format_version}}}\n'.encode()


class ProgressLog:
    """The log of one directory, for one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Open the files in `directory`, or create them.

        Raises:
            CheckpointError: if `progress.jsonl` is of another format or version.
        """
        self.directory = directory
        self._path, self._sent_path = directory / LOG_FILE, directory / SENT_FILE
        directory.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b", buffering=0) as file:
            _truncate_to_whole_lines(file)
            if not self._path.stat().st_size:
                file.write(_HEAD)
        self._first = _require_format(self._path)
        self._sent = self._read_sent()
        self._pending: list[Line] = []
        self._to_retry = self._sent.refused
        self._delivery = Delivery(directory)
        self._sending = threading.Lock()

    @property
    def run_id(self) -> str | None:
        """The MLflow run that has what was sent."""
        return self._sent.run_id

    @property
    def behind(self) -> bool:
        """Whether MLflow lacks a line."""
        return self._path.stat().st_size > self._sent.bytes or bool(self._sent.refused)

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

    def send(self, tracker: Tracker) -> None:
        """Send what MLflow lacks, oldest first; another run than before gets every line.

        A line that MLflow refuses while it answers, such as a picture where its artifacts cannot be written, is left
        for the next command. A line that is not of this log, or names a file that is gone, is skipped with a warning.

        Raises:
            UserError: if MLflow does not answer; `progress.sent` counts what it took before.
        """
        with self._sending:
            if tracker.run_id != self._sent.run_id:
                self._to_retry = ()
                self._save(SentRecord(run_id=tracker.run_id, bytes=self._first))
            self._retry(tracker)
            for entries, end in self._unsent():
                refused = self._delivery.deliver(tracker, self._without_old_status(entries, end))
                self._save(SentRecord(run_id=tracker.run_id, bytes=end, refused=(*self._sent.refused, *refused)))

    def _without_old_status(self, entries: list[Entry], end: int) -> list[Entry]:
        """`entries` but for a status that a later command has gone on from: it would end the run that is open now."""
        is_last = end == self._path.stat().st_size
        return [entry for entry in entries if "status" not in entry.line or (is_last and entry is entries[-1])]

    def _retry(self, tracker: Tracker) -> None:
        """Send the lines again that MLflow refused of an earlier command."""
        offsets, self._to_retry = self._to_retry, ()
        for offset in offsets:
            with self._path.open("rb") as file:
                file.seek(offset)
                line = parse_line(file.readline(), self._path, offset)
            if line is not None and kind_of(line) in FILE_KINDS and self._delivery.refuses_files:
                continue  # Not tried, and so it stays before those that were.
            refused = self._delivery.deliver(tracker, [Entry(offset, line)]) if line is not None else []
            # One that is refused again goes to the end, so that it never keeps others from being tried.
            rest = tuple(other for other in self._sent.refused if other != offset)
            self._save(SentRecord(run_id=tracker.run_id, bytes=self._sent.bytes, refused=(*rest, *refused)))

    # ---------------------------------------------------------------- the files

    def _unsent(self) -> Iterator[tuple[list[Entry], int]]:
        """Lines that are not sent, in chunks, each with the offset in the file where it ends."""
        end = self._sent.bytes
        with self._path.open("rb") as file:
            file.seek(end)
            # Half a line at the end is one that `add` is writing.
            whole_lines = itertools.takewhile(lambda line: line.endswith(b"\n"), file)
            while chunk := list(itertools.islice(whole_lines, _LINES_AT_ONCE)):
                entries = []
                for data in chunk:
                    line = parse_line(data, self._path, end)
                    if line is not None:
                        entries.append(Entry(end, line))
                    end += len(data)
                yield entries, end

    def _read_sent(self) -> SentRecord:
        """What `progress.sent` says; if it is damaged, MLflow gets lines twice, which changes nothing."""
        try:
            sent = read_record(self._sent_path, SentRecord)
        except UserError:
            sent = SentRecord()
        # After a crash of the machine, it may count lines that never reached the disk.
        size = self._path.stat().st_size
        end = max(self._first, min(sent.bytes, size))
        refused = tuple(offset for offset in sent.refused if self._first <= offset < end)
        return SentRecord(run_id=sent.run_id, bytes=end, refused=refused)

    def _save(self, sent: SentRecord) -> None:
        self._sent = sent
        write_record(self._sent_path, sent)


def is_behind(directory: Path) -> bool:
    """Whether MLflow lacks a line of the log in `directory`, which another process may be writing."""
    try:
        sent = read_record(directory / SENT_FILE, SentRecord)
    except UserError:
        sent = SentRecord()
    path = directory / LOG_FILE
    return path.exists() and (path.stat().st_size > max(sent.bytes, len(_HEAD)) or bool(sent.refused))


def has_ended(directory: Path) -> bool:
    """Whether the last line of the log in `directory` says how the work ended, or the log has no line yet."""
    with (directory / LOG_FILE).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4096))
        last = file.readlines()[-1:]
    try:
        line = json.loads(b"".join(last))
    except ValueError:  # Half a line, or one that is longer than any status.
        line = None
    return size <= len(_HEAD) or (isinstance(line, dict) and kind_of(line) == "status")


def _truncate_to_whole_lines(file: Any) -> None:
    """Drop the half line that a killed process may leave."""
    size = end = file.seek(0, 2)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        file.truncate(end)


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


def keep_sending(send: Callable[[], None], ended: threading.Event, every_s: float = 1.0) -> str:
    """Call `send` every `every_s` seconds until `ended` is set, and once more then.

    Returns:
        Why the last attempt failed; "" if it succeeded.
    """
    while True:
        last, failure = ended.wait(every_s), ""
        try:
            send()
        except Exception as error:  # Whatever MLflow's store raises, training goes on.
            failure = str(error)
        if last:
            return failure
