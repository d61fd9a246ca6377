"""A code table larger than memory: on disk, with the windows in use in memory.

files (scratch, a column each) --read ahead--> slots of `window` rows --step--> slots --write back--> files

An epoch visits the windows of a lane one after the other (`order.LaneOrder`), so that each row is read and written
once an epoch, in runs of `window` rows. Two threads do it; a window is never read before what was changed in it is
written, nor into a slot whose last window is not.
"""

import itertools
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.table import CodeTable, raw_name
from glo_core.common.arrays import Int64Array
from glo_core.common.errors import UserError
from glo_core.common.shapes import Float, Int, Tensor

SLOTS_PER_LANE = 3
"""The window in use, the one read ahead, and the one being written back"""


class WindowedTable:
    """Codes of the images of one rank, of which `SLOTS_PER_LANE` windows of each lane are in memory.

    It offers what `CodeTable` offers to the loop; `resident` is the table of the slots.
    """

    def __init__(
        self,
        config: ResolvedCodeConfig,
        ids: Int64Array,
        first: Int64Array,
        window: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        scratch: Path | None = None,
    ) -> None:
        """Make room for codes; their values are what `write` brings.

        Args:
            ids: image ids, int64 `[n]`, lane by lane.
            first: first row of each lane, and the end, int64 `[lanes + 1]`.
            window: rows of a window.
            scratch: directory on a local disk (default: the system's temporary directory). The files have no
                name there, and vanish with the process.
        """
        self.config, self.ids, self.window = config, ids, window
        self._first = first
        counts = -(-np.diff(first) // window)
        self._number = np.concatenate([[0], np.cumsum(counts)])
        starts = [np.arange(count) * window + start for start, count in zip(first[:-1], counts, strict=True)]
        self._start = np.concatenate([*starts, [0]]).astype(np.int64)
        lane_end = np.repeat(first[1:], counts)
        self._end = np.minimum(self._start[:-1] + window, lane_end)
        slots = min(SLOTS_PER_LANE * len(counts), max(int(counts.sum()), 1))
        self.resident = CodeTable(config, ids[:0], torch.zeros(slots * window, config.dim, device=device, dtype=dtype))
        self._files = {
            name: _scratch_file(scratch, len(ids), column) for name, column in self.resident.columns().items()
        }
        self._slot = np.full(int(counts.sum()), -1, np.int64)
        self._free = list(range(slots))
        self._used: OrderedDict[int, int] = OrderedDict()
        """Window -> slot, least recently used first"""
        self._dirty: set[int] = set()
        """Windows whose rows in memory may differ from the files"""
        self._loading: dict[int, Future[None]] = {}
        self._writing: dict[int, tuple[int, Future[None]]] = {}
        """Slot -> the window that is written back from it"""
        self._next: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="codes")

    # ---------------------------------------------------------------- for a step

    def begin_epoch(self, windows: Sequence[Int64Array]) -> None:
        """Learn in which order each lane will visit its windows, to read ahead."""
        self._next = {}
        for lane, visits in enumerate(windows):
            numbers = (visits + self._number[lane]).tolist()
            self._next.update(itertools.pairwise(numbers))

    def fetch(self, rows: Int64Array) -> Int[Tensor, " b"]:
        """Slots of `rows` (int64 `[b]`) in `resident`, to be changed there, after their windows have come.

        Rows of a lane may be of as many windows as there are slots for it: a step's are, if it has no more of them
        than a window has. int64 `[b]`, on the device.
        """
        number, inside = self._windows_of(rows)
        needed = np.unique(number).tolist()
        for following in self._wait_for(needed):
            if (ahead := self._next.get(following)) is not None:
                self._read_window(ahead, needed, ahead=True)
        self._dirty.update(needed)
        return self._slots_of(number, inside)

    def chunks(self, rows: Int64Array, limit: int) -> list[Int64Array]:
        """`rows` cut where a window ends, and to at most `limit`."""
        number, _ = self._windows_of(rows)
        of_window = np.split(rows, np.flatnonzero(np.diff(number)) + 1)
        return [some[start : start + limit] for some in of_window for start in range(0, len(some), limit)]

    def _windows_of(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Number of each row's window, and its place in the window."""
        lane = np.searchsorted(self._first, rows, side="right") - 1
        inside = rows - self._first[lane]
        return self._number[lane] + inside // self.window, inside % self.window

    def _slots_of(self, number: Int64Array, inside: Int64Array) -> Int[Tensor, " b"]:
        slots = self._slot[number] * self.window + inside
        return torch.from_numpy(slots).to(self.resident.raw.device, non_blocking=True)

    def _wait_for(self, needed: Sequence[int]) -> list[int]:
        """Wait until every window of `needed` is in memory; returns those that had to be read."""
        for each in needed:
            self._read_window(each, needed)
        read = [each for each in needed if each in self._loading]
        for each in read:
            self._loading.pop(each).result()
        return read

    def _read_window(self, number: int, needed: Sequence[int], *, ahead: bool = False) -> None:
        """Have an I/O thread read a window, unless it is there; make room by writing another one back."""
        if number in self._used:
            self._used.move_to_end(number)
            return
        if not self._free:
            others = [each for each in self._used if each not in needed]
            victim = next((each for each in others if each not in self._loading), None)
            if victim is None and ahead:
                return  # Everything is in use, and this can wait.
            if victim is None:
                if not others:
                    raise RuntimeError(
                        f"{len(needed)} windows are needed at once, and there are {len(self._used)} slots"
                    )
                victim = others[0]  # Read ahead for nothing.
                self._loading.pop(victim).result()
            self._write_back(victim)
            self._free.append(self._used.pop(victim))
            self._slot[victim] = -1
        slot = self._used[number] = self._free.pop()
        self._slot[number] = slot
        for piece in self._pieces(number, slot):  # The kernel reads while the threads are busy with others.
            _will_need(*piece)
        # Not before its rows are in the files, and the slot's last rows too. They wait for nothing that comes later.
        before = [stored for place, (of, stored) in self._writing.items() if place == slot or of == number]
        self._loading[number] = self._pool.submit(self._load, number, slot, before)

    def _write_back(self, number: int) -> None:
        if number not in self._dirty:
            return
        self._dirty.remove(number)
        slot, event = int(self._slot[number]), None
        if self.resident.raw.is_cuda:  # The thread must not read what the device has not finished.
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.resident.raw.device))
        for place in [place for place, (_, stored) in self._writing.items() if stored.done()]:
            self._writing.pop(place)[1].result()
        before = self._writing.get(slot)
        self._writing[slot] = number, self._pool.submit(self._store, number, slot, event, before and before[1])

    def _pieces(self, number: int, slot: int) -> Iterator[tuple[torch.Tensor, Any, int]]:
        """Of each column of a window: its rows in the slot, its file, and its first row there."""
        first, rows = int(self._start[number]), int(self._end[number] - self._start[number])
        for name, column in self.resident.columns().items():
            yield column[slot * self.window : slot * self.window + rows], self._files[name], first

    def _load(self, number: int, slot: int, before: Sequence[Future[None]]) -> None:
        for stored in before:
            stored.result()
        for piece in self._pieces(number, slot):
            _copy_in(*piece)

    def _store(self, number: int, slot: int, event: Any, before: Future[None] | None) -> None:
        if before is not None:
            before.result()
        if event is not None:
            event.synchronize()
        for piece in self._pieces(number, slot):
            _copy_out(*piece)

    # ---------------------------------------------------------------- in runs of rows

    def flush(self) -> None:
        """Write every window that was changed to the files."""
        for number in sorted(self._dirty):
            self._write_back(number)
        writing, self._writing = self._writing, {}
        for _, stored in writing.values():
            stored.result()

    def read(self, first: int, last: int) -> dict[str, torch.Tensor]:
        """Columns of a run of rows, in host memory; see `CodeTable.columns`."""
        self.flush()
        columns = {}
        for name, column in self.resident.columns().items():
            into = torch.empty((last - first, *column.shape[1:]), dtype=column.dtype)
            _copy_in(into, self._files[name], first)
            columns[name] = into
        return columns

    def snapshot(self, into: CodeTable | None = None) -> "WindowedTable":
        """Itself: the files are what can be read, until training goes on."""
        self.flush()
        return self

    def write(self, first: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Set columns of a run of rows. What is in memory is forgotten."""
        self.flush()
        for number, slot in self._used.items():
            if number in self._loading:
                self._loading.pop(number).result()
            self._slot[number] = -1
            self._free.append(slot)
        self._used.clear()
        for name, values in columns.items():
            _copy_out(values.to(self.resident.columns()[name]), self._files[name], first)

    def codes(self, rows: Int[Tensor, " b"] | slice = slice(None)) -> Float[Tensor, "rows dim"]:
        """Codes as the decoder receives them, `[rows, dim]`, on the device."""
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self.ids))
            raw = self.read(first, last)[raw_name(self.config)]
            return self.resident.project(raw.to(self.resident.raw.device))
        number, inside = self._windows_of(rows.cpu().numpy())
        self._wait_for(np.unique(number).tolist())
        return self.resident.codes(self._slots_of(number, inside))


def _scratch_file(directory: Path | None, rows: int, column: torch.Tensor) -> Any:
    """A file without a name, with room for `rows` rows of a column."""
    size = rows * column[:1].numel() * column.element_size()
    try:
        file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115, open as long as its table lives.
        os.truncate(file.fileno(), size)
    except OSError as error:
        place = directory or tempfile.gettempdir()
        raise UserError(f"`scratch` (={place}): {os.strerror(error.errno or 0).lower()}; name a local disk") from None
    return file


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.numpy().reshape(-1).view(np.uint8)
    return memoryview(flat)


def _will_need(tensor: torch.Tensor, file: Any, row: int) -> None:
    """Announce a `_copy_in`, to systems that take notice."""
    if not hasattr(os, "posix_fadvise"):
        return
    row_bytes = tensor[:1].numel() * tensor.element_size()
    os.posix_fadvise(file.fileno(), row * row_bytes, len(tensor) * row_bytes, os.POSIX_FADV_WILLNEED)


def _copy_in(tensor: torch.Tensor, file: Any, row: int) -> None:
    """Read `len(tensor)` rows from `row` on."""
    host = tensor if tensor.device.type == "cpu" else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    buffer, place = _bytes(host), row * tensor[:1].numel() * tensor.element_size()
    while len(buffer):
        count = os.preadv(file.fileno(), [buffer], place)
        buffer, place = buffer[count:], place + count
    if host is not tensor:
        tensor.copy_(host)


def _copy_out(tensor: torch.Tensor, file: Any, row: int) -> None:
    """Write the rows of `tensor` from `row` on.

    Raises:
        UserError: if the disk is full.
    """
    buffer, place = _bytes(tensor.cpu().contiguous()), row * tensor[:1].numel() * tensor.element_size()
    while len(buffer):
        try:
            count = os.pwritev(file.fileno(), [buffer], place)
        except OSError as error:
            raise UserError(f"`scratch`: {os.strerror(error.errno or 0).lower()}; name a larger disk") from None
        buffer, place = buffer[count:], place + count
