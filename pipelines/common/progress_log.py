"""`progress.jsonl`: what a stage tells MLflow, a line each; `progress.sent`: what MLflow has of it.

A stage writes to the disk first, and its work never waits for MLflow. What MLflow did not take is sent later, also by
the next command.
"""

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glo_core.common.errors import CheckpointError, UserError, one_line
from glo_core.common.records import Record, read_record, require_format, write_record
from pipelines.common.delivery import Delivery
from pipelines.common.progress_lines import FILE_KINDS, Entry, Line, kind_of, parse_line
from pipelines.common.tracking import Tracker

_LINES_AT_ONCE = 1000
"""Lines that are sent before `progress.sent` is written"""
LOG_FILE = "progress.jsonl"
SENT_FILE = "progress.sent"
log = logging.getLogger("glo.progress")


class ProgressHead(Record):
    """The first line of `progress.jsonl`."""

    format: ClassVar[str] = "glo-progress"
    error: ClassVar[type[UserError]] = CheckpointError


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
            CheckpointError: if `progress.jsonl` is of a newer version. One whose first line is damaged is moved to a
                file beside, with a warning.
        """
        self.directory = directory
        self._path, self._sent_path = directory / LOG_FILE, directory / SENT_FILE
        directory.mkdir(parents=True, exist_ok=True)
        self._first, self._end = _open_whole_lines(self._path)
        if not self._first:
            _set_aside(self._path)
            self._first, self._end = _open_whole_lines(self._path)
        self._sent = self._read_sent()
        self._pending: list[Line] = []
        self._warned = False
        self._to_retry = self._sent.refused
        self._delivery = Delivery(directory)
        self._sending = threading.Lock()

    @property
    def run_id(self) -> str | None:
        """The MLflow run that has what was sent."""
        return self._sent.run_id

    @property
    def begun(self) -> bool:
        """Whether the log has a line after its first: an earlier command has begun."""
        return self._end > self._first

    @property
    def behind(self) -> bool:
        """Whether MLflow lacks a line."""
        return self._path.stat().st_size > self._sent.bytes or bool(self._sent.refused)

    def add(self, lines: list[Line]) -> None:
        """Write `lines`, after those that the disk did not take; what it does not take waits for the next call."""
        self._pending += lines
        try:
            self._append("".join(json.dumps(line) + "\n" for line in self._pending).encode())
        except OSError as error:  # A full disk, or one that fails for a moment.
            if not self._warned:
                log.warning("%s; the work goes on, and its reports wait for the disk", one_line(error))
            self._warned = True
        else:
            self._pending, self._warned = [], False

    def _append(self, lines: bytes) -> None:
        data = memoryview(lines)
        with self._path.open("ab", buffering=0) as file:
            end = min(self._end, os.fstat(file.fileno()).st_size)
            file.truncate(end)  # Whole lines only: the last call may have failed in the middle of its own.
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise
        self._end = end + len(lines)

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
                if line is not None and "status" in line and file.read(1):
                    line = None  # A later command has gone on from it: it would end the run that is open now.
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
        whole = SentRecord(run_id=sent.run_id, bytes=end, refused=refused)
        if sent.bytes > end:  # Lines that come now must not count as sent once the log is as long as it was.
            write_record(self._sent_path, whole)
        return whole

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


def _open_whole_lines(path: Path) -> tuple[int, int]:
    """Begin the log `path` if it is empty or not there, and drop half a line at its end.

    Returns:
        The bytes of the first line, 0 if it is damaged, and of the file.

    Raises:
        CheckpointError: if the log is of a newer version.
    """
    with path.open("a+b", buffering=0) as file:
        _truncate_to_whole_lines(file)
        if not file.seek(0, os.SEEK_END):
            file.write(_HEAD)
    with path.open("rb") as file:
        line = file.readline()
        size = file.seek(0, os.SEEK_END)
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("format") != ProgressHead.format:
        return 0, size
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        return 0, size
    require_format(values, ProgressHead, path)
    return len(line), size


def _set_aside(path: Path) -> None:
    """Rename `path`, a log whose first line is damaged."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    target = next(name for name in names if not name.exists())
    path.rename(target)
    log.warning(
        "%s: its first line is damaged; it is now %s, MLflow is not sent what it missed of it, and a new log begins",
        path,
        target.name,
    )


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
