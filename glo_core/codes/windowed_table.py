"""A code table larger than memory: on disk, with the windows in use in memory.

files (scratch, a column each) --read ahead--> slots of `window` rows --step--> slots --write back--> files

An epoch visits the windows of a lane one after the other (`data/epoch_order.py`), so that each row is read and
written once an epoch, in runs of `window` rows. Two I/O threads read and write. A window is loaded only after its own
rows and the slot's previous rows have been written. A write never waits for a load, so this cannot deadlock.
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
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.errors import DISK_FULL, ConfigError, UserError
from glo_core.common.shapes import Float, Tensor

SLOTS_PER_LANE = 3
"""The window in use, the one read ahead, and the one being written back"""


class WindowedTable:
    """Codes of the images of one rank, of which `SLOTS_PER_LANE` windows of each lane are in memory.

    It offers what `CodeTable` offers to the loop; `resident` is the table of the slots.
    """

    def __init__(
        self,
        config: ResolvedCodeConfig,
        ids: Int[Int64Array, " n"],
        first: Int[Int64Array, " lanes_and_end"],
        window: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        scratch: Path | None = None,
    ) -> None:
        """Make room for codes, whose values `write` sets later; until then every value is zero.

        Args:
            config: the codes' part of the recipe.
            ids: image ids, int64 `[n]`, lane by lane.
            first: first row of each lane, and the end, int64 `[lanes + 1]`.
            window: rows of a window; the last one of a lane may have fewer.
            device: where the slots lie.
            dtype: of codes and optimizer state.
            scratch: directory on a local disk (default: the system's temporary directory). The files have no
                name there, and vanish with the process.

        Raises:
            ConfigError: if `scratch` does not take files of this size.
        """
        self.config, self.ids, self.window = config, ids, window
        self._first = first
        # Axis [lane]: the number of its windows, ceil(rows / window).
        counts = -(-np.diff(first) // window)
        # Axis [lane, and the end]: the number of its first window. All windows are numbered through, lane by lane.
        self._first_window = np.concatenate([[0], np.cumsum(counts)])
        # Axis [window]: its first row, and the row after its last one.
        starts = [np.arange(count) * window + row for row, count in zip(first[:-1], counts, strict=True)]
        self._start = np.concatenate([*starts, np.empty(0, np.int64)]).astype(np.int64)
        self._end = np.minimum(self._start + window, np.repeat(first[1:], counts))
        slots = min(SLOTS_PER_LANE * len(counts), max(int(counts.sum()), 1))
        # Axis [slot x place in the window].
        self.resident = CodeTable(config, ids[:0], torch.zeros(slots * window, config.dim, device=device, dtype=dtype))
        self._files = {
            name: _scratch_file(scratch, len(ids), column) for name, column in self.resident.columns().items()
        }
        # Axis [window]: its slot, -1 for a window that is not in memory.
        self._slot = np.full(int(counts.sum()), -1, np.int64)
        self._free = list(range(slots))
        self._used: OrderedDict[int, int] = OrderedDict()
        """Window -> slot, least recently used first"""
        self._dirty: set[int] = set()
        """Windows whose rows in memory may differ from the files"""
        self._loading: dict[int, Future[None]] = {}
        """Window -> its load, which has not been waited for"""
        self._writing: dict[int, tuple[int, Future[None]]] = {}
        """Slot -> the window that is written back from it, and the write"""
        self._next: dict[int, int] = {}
        """Window -> the window that its lane visits after it"""
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="codes")

    # ---------------------------------------------------------------- for a step

    def begin_epoch(self, windows: Sequence[Int[Int64Array, " _"]]) -> None:
        """Take the order in which each lane will visit its windows, to read ahead.

        Args:
            windows: of each lane of this rank, its windows' numbers in the lane in the order of their visits, int64.
        """
        self._next = {}
        for lane, visits in enumerate(windows):
            numbers = (visits + self._first_window[lane]).tolist()
            self._next.update(itertools.pairwise(numbers))

    def fetch(self, rows: Int[Int64Array, " b"], on_device: Int[Tensor, " b"] | None = None) -> Int[Tensor, " b"]:
        """Bring the windows of `rows` (int64 `[b]`) into memory; the caller may change the rows there.

        The rows of a lane may lie in as many windows as it has slots. Those of a step do, if a window has at least as
        many rows as a lane has in a step.

        Returns:
            Row of each row in `resident`, int64 `[b]` on the device; valid until the next call.

        Raises:
            RuntimeError: if the rows lie in more windows than there are slots.
            UserError: if the disk is full.
        """
        windows, offsets = self._windows_of(rows)
        needed = np.unique(windows).tolist()
        for window in self._wait_for(needed):
            if (next_window := self._next.get(window)) is not None:
                self._read_window(next_window, needed, ahead=True)
        self._dirty.update(needed)
        return self._slots_of(windows, offsets)

    def chunks(self, rows: Int[Int64Array, " n"], limit: int) -> list[Int[Int64Array, " _"]]:
        """Cut `rows` (int64 `[n]`) where a window ends, and into chunks of at most `limit` rows."""
        windows, _ = self._windows_of(rows)
        pieces = np.split(rows, np.flatnonzero(np.diff(windows)) + 1)
        return [piece[start : start + limit] for piece in pieces for start in range(0, len(piece), limit)]

    def _windows_of(self, rows: Int[Int64Array, " b"]) -> tuple[Int[Int64Array, " b"], Int[Int64Array, " b"]]:
        """The window of each row, and the row's offset in the window, int64 `[b]` each."""
        # Axis [row] throughout. The lane is the last one whose first row is not above the row.
        lanes = np.searchsorted(self._first, rows, side="right") - 1
        offsets = rows - self._first[lanes]
        return self._first_window[lanes] + offsets // self.window, offsets % self.window

    def _slots_of(self, windows: Int[Int64Array, " b"], offsets: Int[Int64Array, " b"]) -> Int[Tensor, " b"]:
        """Row in `resident` of each row, of its window and its offset there; int64 `[b]` on the device."""
        # Axis [row]: slot s holds the rows from s * window on.
        slots = self._slot[windows] * self.window + offsets
        return torch.from_numpy(slots).to(self.resident.raw.device, non_blocking=True)

    def _wait_for(self, needed: Sequence[int]) -> list[int]:
        """Wait until every window of `needed` is in memory; returns those that had to be loaded."""
        for number in needed:
            self._read_window(number, needed)
        loads = [number for number in needed if number in self._loading]
        for number in loads:
            self._loading.pop(number).result()
        return loads

    def _read_window(self, number: int, needed: Sequence[int], *, ahead: bool = False) -> None:
        """Have an I/O thread load a window that is not in memory; make room by writing another one back."""
        if number in self._used:
            self._used.move_to_end(number)
            return
        if not self._free:
            others = [window for window in self._used if window not in needed]
            victim = next((window for window in others if window not in self._loading), None)
            if victim is None and ahead:
                return  # Every window is in use, and reading ahead can wait.
            if victim is None:
                if not others:
                    raise RuntimeError(
                        f"{len(needed)} windows are needed at once, and there are {len(self._used)} slots"
                    )
                victim = others[0]  # It was read ahead, and is not used.
                self._loading.pop(victim).result()
            self._write_back(victim)
            self._free.append(self._used.pop(victim))
            self._slot[victim] = -1
        slot = self._used[number] = self._free.pop()
        self._slot[number] = slot
        for piece in self._pieces(number, slot):  # The kernel reads while the threads are busy with other windows.
            _will_need(*piece)
        # Load a window only after its own rows and the slot's previous rows have been written.
        writes = [
            write for writing_slot, (window, write) in self._writing.items() if writing_slot == slot or window == number
        ]
        self._loading[number] = self._pool.submit(self._load, number, slot, writes)

    def _write_back(self, number: int) -> None:
        """Have an I/O thread write a window to the files, if its rows in memory may differ from them."""
        if number not in self._dirty:
            return
        self._dirty.remove(number)
        slot, event = int(self._slot[number]), None
        if self.resident.raw.is_cuda:  # The thread must not read what the device has not finished.
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.resident.raw.device))
        for idle_slot in [idle_slot for idle_slot, (_, write) in self._writing.items() if write.done()]:
            self._writing.pop(idle_slot)[1].result()
        earlier = self._writing.get(slot)
        self._writing[slot] = number, self._pool.submit(self._store, number, slot, event, earlier and earlier[1])

    def _pieces(self, number: int, slot: int) -> Iterator[tuple[Tensor, Any, int]]:
        """Of each column of a window: its rows in the slot, its file, and its first row in the file."""
        first, rows = int(self._start[number]), int(self._end[number] - self._start[number])
        for name, column in self.resident.columns().items():
            yield column[slot * self.window : slot * self.window + rows], self._files[name], first

    def _load(self, number: int, slot: int, writes: Sequence[Future[None]]) -> None:
        for write in writes:
            write.result()
        for piece in self._pieces(number, slot):
            _copy_in(*piece)

    def _store(self, number: int, slot: int, event: Any, earlier: Future[None] | None) -> None:
        if earlier is not None:
            earlier.result()
        if event is not None:
            event.synchronize()
        for piece in self._pieces(number, slot):
            _copy_out(*piece)

    # ---------------------------------------------------------------- in runs of rows

    def flush(self) -> None:
        """Write every window that was changed to the files, and wait for it.

        Raises:
            UserError: if the disk is full.
        """
        for number in sorted(self._dirty):
            self._write_back(number)
        writing, self._writing = self._writing, {}
        for _, write in writing.values():
            write.result()

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """All columns of the rows from `first` to before `last`, by the format's names, in host memory."""
        self.flush()
        columns = {}
        for name, column in self.resident.columns().items():
            into = torch.empty((last - first, *column.shape[1:]), dtype=column.dtype)
            _copy_in(into, self._files[name], first)
            columns[name] = into
        return columns

    def snapshot(self, into: CodeTable | None = None) -> "WindowedTable":
        """Itself, after a flush: it can be read until training continues."""
        self.flush()
        return self

    def write(self, first: int, columns: Mapping[str, Tensor]) -> None:
        """Set columns of the rows from `first` on, and empty every slot; dtype and device are converted."""
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
        """Codes as the decoder receives them, `[rows, dim]` on the device, of row numbers (int64 `[b]`) or a slice.

        The row numbers may lie in as many windows as there are slots.
        """
        if isinstance(rows, slice):
            first, last, _ = rows.indices(len(self.ids))
            raw = self.read(first, last)[raw_name(self.config)]
            return self.resident.project(raw.to(self.resident.raw.device))
        windows, offsets = self._windows_of(rows.cpu().numpy())
        self._wait_for(np.unique(windows).tolist())
        return self.resident.codes(self._slots_of(windows, offsets))


def _scratch_file(directory: Path | None, rows: int, column: Tensor) -> Any:
    """A file without a name, with room for `rows` rows of a column.

    Raises:
        ConfigError: if the directory does not take it.
    """
    size = rows * column[:1].numel() * column.element_size()
    try:
        file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115, open as long as its table exists.
        os.truncate(file.fileno(), size)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigError(f"`scratch` (={directory or tempfile.gettempdir()}): {reason}; name a local disk") from None
    return file


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a row-major tensor in host memory, without a copy."""
    flat: Any = tensor.numpy().reshape(-1).view(np.uint8)
    return memoryview(flat)


def _will_need(tensor: Tensor, file: Any, row: int) -> None:
    """Announce a `_copy_in` to the kernel, where it offers this."""
    if not hasattr(os, "posix_fadvise"):
        return
    row_bytes = tensor[:1].numel() * tensor.element_size()
    os.posix_fadvise(file.fileno(), row * row_bytes, len(tensor) * row_bytes, os.POSIX_FADV_WILLNEED)


def _copy_in(tensor: Tensor, file: Any, row: int) -> None:
    """Read the rows of `tensor` from the file, from `row` on."""
    host = tensor if tensor.device.type == "cpu" else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    # Byte of a row: values of a row x bytes of a value.
    buffer, position = _bytes(host), row * tensor[:1].numel() * tensor.element_size()
    while len(buffer):
        count = os.preadv(file.fileno(), [buffer], position)
        buffer, position = buffer[count:], position + count
    if host is not tensor:
        tensor.copy_(host)


def _copy_out(tensor: Tensor, file: Any, row: int) -> None:
    """Write the rows of `tensor` to the file, from `row` on.

    Raises:
        UserError: if the disk is full.
    """
    buffer, position = _bytes(tensor.cpu().contiguous()), row * tensor[:1].numel() * tensor.element_size()
    while len(buffer):
        try:
            count = os.pwritev(file.fileno(), [buffer], position)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UserError(f"`scratch`: {os.strerror(error.errno or 0).lower()}; name a larger disk") from None
        buffer, position = buffer[count:], position + count
