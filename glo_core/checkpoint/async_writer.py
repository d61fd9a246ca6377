"""Checkpoints written on a thread while training goes on.

copy of the state at a step's boundary -> a thread of every rank writes and hashes its shards -> all ranks agree that
every part is written -> rank 0 looks at every part, writes the mark, renames the directory to its final name, which
commits it, and deletes older checkpoints
"""

import contextlib
import dataclasses
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import torch

from glo_core.checkpoint.attempt import PATIENCE_SECONDS, Attempt, FencedError
from glo_core.checkpoint.layout import (
    CODES_METADATA,
    MARK,
    CheckpointRecord,
    Part,
    Position,
    discard,
    forget_metrics,
    is_committed,
    shard_name,
    staging_directory,
)
from glo_core.checkpoint.pruning import forget_fitted_codes, prune
from glo_core.codes.table import CodeTable, Table, raw_name
from glo_core.common.digests import DIGEST_BYTES, new_hasher
from glo_core.common.failures import UnseenFileError, raise_together
from glo_core.common.files import atomic_write, sync_directory
from glo_core.common.records import write_record
from glo_core.common.runtime import Runtime
from glo_core.common.tensor_files import tensor_bytes
from glo_core.data.image_source import ImageSource, rows_of_shards

NICENESS = 19
"""Of the writing thread: the lowest priority of Linux"""
DecoderFiles = dict[str, bytes | dict[str, torch.Tensor]]
"""By the file's name: the bytes of a JSON file, or the tensors of a safetensors file"""


class CheckpointWriter:
    """Writes and commits `<run>/checkpoints/<images seen>`; every rank calls each method at the same step."""

    def __init__(self, attempt: Attempt, images: ImageSource, runtime: Runtime, *, keep: int = 2) -> None:
        """Write checkpoints of the run that `attempt` trains.

        Args:
            attempt: of this group of ranks.
            images: of this rank; their code shards are the parts that it writes.
            runtime: this rank and its connection to the others.
            keep: number of committed checkpoints that are left, besides the one of the highest training PSNR.
        """
        self.attempt, self.images, self.runtime, self.keep = attempt, images, runtime, keep
        self._copy: CodeTable | None = None
        self._thread: threading.Thread | None = None
        self._parts: dict[str, Part] = {}
        self._error: BaseException | None = None
        self._record: CheckpointRecord | None = None

    @property
    def written(self) -> bool:
        """Whether this rank's thread has ended, with or without an error."""
        return self._thread is not None and not self._thread.is_alive()

    def begin(self, table: Table, record: CheckpointRecord, decoder_files: Callable[[], DecoderFiles]) -> None:
        """Copy the state and let a thread write it, after the checkpoint before is committed.

        Nothing is written if there is a committed checkpoint of the record's position. A `WindowedTable` is written
        before this returns, because the next step would change its files.

        Args:
            table: codes of this rank.
            record: the content of `checkpoint.json`, but for the parts.
            decoder_files: returns a copy of the decoder's files; called on rank 0.

        Raises:
            UserError, RankError: as of `finish`, about the checkpoint before.
        """
        self.finish()
        if self.runtime.all_gather(self.runtime.rank == 0 and is_committed(self._committed(record)))[0]:
            return  # It was committed before an interruption.
        self._record = record
        table = table.snapshot(self._copy)
        self._copy = table if isinstance(table, CodeTable) else None
        files = decoder_files() if self.runtime.rank == 0 else {}
        self._parts, self._error = {}, None
        self._thread = threading.Thread(target=self._write, args=(self._directory(record), table, files), daemon=True)
        self._thread.start()
        if self._copy is None:  # The thread reads from files that the next step would change.
            self.finish()

    def _directory(self, record: CheckpointRecord) -> Path:
        """Of the parts until they are committed."""
        return staging_directory(self.attempt.run, record.position.images_seen, self.attempt.token)

    def _committed(self, record: CheckpointRecord) -> Path:
        return self.attempt.run / "checkpoints" / str(record.position.images_seen)

    def _write(self, directory: Path, table: Table, files: DecoderFiles) -> None:
        # On Linux each thread has its own priority: the thread takes the time that training leaves idle. While a
        # table on disk is written, training waits, and the thread keeps its priority.
        if sys.platform == "linux" and isinstance(table, CodeTable):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self.attempt.require_current()
            for shard, (first, last) in rows_of_shards(self.images).items():
                with _written(directory, shard_name(shard), self._parts) as file:
                    _write_shard(file, table, first, last)
            for name, content in files.items():
                with _written(directory, name, self._parts) as file:
                    file.write(content if isinstance(content, bytes) else tensor_bytes(content))
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the thread of every rank and commit its checkpoint; nothing if there is no thread.

        Raises:
            UserError: on every rank, if a rank could not write its parts for a reason that the user can mend, or a
                newer attempt trains the run.
            UnseenFileError: on rank 0, if it does not see what another rank wrote.
            RankError: if another rank could not write its parts, or does not see them; an error of this rank's own
                machine is raised as it is.
        """
        if self._thread is None or self._record is None:
            return
        self._thread.join()
        self._thread = None
        try:
            self._finish(self._record)
        except FencedError:
            discard(self._directory(self._record))  # The newer attempt swept before this thread had ended.
            raise

    def _finish(self, record: CheckpointRecord) -> None:
        """Commit what the threads of all ranks, which have ended, wrote; errors as of `finish`."""
        raise_together(self.runtime, self._error)
        # By rank: position, parts, and the host that wrote them.
        ranks = self.runtime.all_gather((record.position, self._parts, socket.gethostname()))
        error: Exception | None = None
        if self.runtime.rank == 0:
            try:
                self._commit(record, ranks)
            except Exception as caught:
                error = caught
        raise_together(self.runtime, error)

    def _commit(self, record: CheckpointRecord, ranks: Sequence[tuple[Position, dict[str, Part], str]]) -> None:
        """Look at what the `ranks` have written, and commit it."""
        if any(position != record.position for position, _, _ in ranks):
            raise RuntimeError(f"ranks are at different positions: {[position for position, _, _ in ranks]}")
        self.attempt.require_current()  # A newer one has moved the parts away: nobody waits for them.
        staging, committed = self._directory(record), self._committed(record)
        for rank, (_, parts, host) in enumerate(ranks):
            for name, part in parts.items():
                _require_part(staging / name, part, f"rank {rank} on {host}")
        parts = {name: part for _, rank_parts, _ in ranks for name, part in rank_parts.items()}
        if missing := {shard_name(shard) for shard in range(record.code_shards)} - parts.keys():
            raise RuntimeError(f"{staging}: no rank wrote {', '.join(sorted(missing))}")
        write_record(staging / MARK, dataclasses.replace(record, parts=parts))
        self.attempt.require_current()
        forget_metrics(self.attempt.run, record.position.images_seen)
        try:
            staging.rename(committed)
        except FileNotFoundError:  # A newer attempt, which began since, has moved it away.
            self.attempt.require_current()
            raise
        sync_directory(committed.parent)
        forget_fitted_codes(self.attempt.run)
        prune(self.attempt.run, self.keep)


def _require_part(path: Path, part: Part, writer: str) -> None:
    """Raise `UnseenFileError` if `path` is not there, or not whole, from where this rank looks at it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        size = path.stat().st_size if path.exists() else None
        if size == part.bytes:
            return
        if time.monotonic() >= deadline:
            seen = "does not see it" if size is None else f"sees {size}"
            raise UnseenFileError(
                f"{path}: {writer} wrote {part.bytes} bytes, and rank 0 on {socket.gethostname()} {seen}; the "
                "checkpoint is not committed"
            )
        time.sleep(0.2)


class _Hashing:
    """A file for writing that hashes the bytes as they pass, so that they need not be read again."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, new_hasher(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def part(self) -> Part:
        return Part(bytes=self.bytes, blake3=self._hash.hexdigest(length=DIGEST_BYTES))


@contextlib.contextmanager
def _written(directory: Path, name: str, parts: dict[str, Part]) -> Iterator[_Hashing]:
    """A file of a checkpoint, written from its first byte to its last; its part is added to `parts`."""
    with atomic_write(directory / name) as temporary, temporary.open("wb") as file:
        hashing = _Hashing(file)
        yield hashing
    parts[name] = hashing.part()


def _write_shard(file: _Hashing, table: Table, first: int, last: int) -> None:
    """Write a code shard, the rows `first` to before `last`, as an Arrow file: the bytes of the columns as they are."""
    columns = table.read(first, last)
    raw = columns[raw_name(table.config)]
    arrays = {"image_id": pa.array(table.ids[first:last])}
    for name, column in {"code": table.resident.project(raw), **columns}.items():
        values = column.numpy()
        flat = pa.array(values.reshape(-1))
        if values.ndim == 2:
            item = pa.field("item", flat.type, nullable=False)
            flat = pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(item, values.shape[1]))
        arrays[name] = flat
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    schema = pa.schema(fields, CODES_METADATA)
    # Parquet would cost three times the processor time: it gives each value of a list a level.
    with pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema))
