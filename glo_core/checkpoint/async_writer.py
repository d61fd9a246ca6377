"""Checkpoints written on a thread while training goes on.

a step's boundary: copy of the state -> thread of every rank: its shards, hashed | all ranks agree that
all is written | rank 0 writes the mark, and deletes older ones
"""

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from glo_core.checkpoint.layout import MARK, Position, prune, shard_name
from glo_core.codes.table import CodeTable, Table, raw_name
from glo_core.common.digests import DIGEST_BYTES, new_hasher
from glo_core.common.errors import UserError
from glo_core.common.files import FORMAT_VERSION, atomic_write, json_bytes, write_json
from glo_core.common.runtime import Runtime
from glo_core.common.tensor_files import tensor_bytes
from glo_core.data.image_source import ImageSource, rows_of_shards

NICENESS = 19
"""Of the writing thread: the lowest priority there is"""
Part = dict[str, Any]
"""Name, bytes and BLAKE3 of a file"""


class CheckpointWriter:
    """Writes and commits `<run>/checkpoints/<images seen>`; every rank calls each method at the same step."""

    def __init__(self, run: Path, images: ImageSource, runtime: Runtime, *, keep: int = 2) -> None:
        """Write for `run`.

        Args:
            images: of this rank; its shards are this rank's parts.
            keep: how many committed checkpoints to leave, besides the best.
        """
        self.run, self.images, self.runtime, self.keep = run, images, runtime, keep
        self._copy: CodeTable | None = None
        self._thread: threading.Thread | None = None
        self._parts: list[Part] = []
        self._error: BaseException | None = None
        self._record: dict[str, Any] = {}

    @property
    def written(self) -> bool:
        """Whether this rank's thread has ended, well or not."""
        return self._thread is not None and not self._thread.is_alive()

    def begin(
        self, position: Position, table: Table, record: Mapping[str, Any], decoder_files: Callable[[], dict[str, Any]]
    ) -> None:
        """Copy the state and let a thread write it; waits for an earlier one first.

        Args:
            table: codes of this rank.
            record: what `checkpoint.json` says beside position, snapshot and parts.
            decoder_files: gives a copy of the decoder's files: tensors, or a JSON object, by name. Asked on rank 0.

        Raises:
            UserError: if the earlier one could not be written.
        """
        self.finish()
        if self.runtime.all_gather((self.run / "checkpoints" / str(position.images_seen) / MARK).exists())[0]:
            return  # Committed before the interruption: whatever is finished is not written again.
        self._record = {
            "format_version": FORMAT_VERSION,
            "position": dataclasses.asdict(position),
            "snapshot": self.images.snapshot,
            "code_shards": self.images.code_shards,
            **record,
        }
        table = table.snapshot(self._copy)
        self._copy = table if isinstance(table, CodeTable) else None
        files = decoder_files() if self.runtime.rank == 0 else {}
        self._parts, self._error = [], None
        self._thread = threading.Thread(target=self._write, args=(self._directory, table, files), daemon=True)
        self._thread.start()
        if self._copy is None:  # Read from the files that the next step would change.
            self.finish()

    @property
    def _directory(self) -> Path:
        return self.run / "checkpoints" / str(self._record["position"]["images_seen"])

    def _write(self, directory: Path, table: Table, files: dict[str, Any]) -> None:
        # Writing takes what training leaves idle; a table on disk is written while training waits.
        if sys.platform == "linux" and isinstance(table, CodeTable):  # Where each thread has a priority of its own.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            for shard, (first, last) in rows_of_shards(self.images).items():
                with _written(directory, shard_name(shard), self._parts) as file:
                    _write_shard(file, table, first, last)
            for name, content in files.items():
                with _written(directory, name, self._parts) as file:
                    file.write(json_bytes(content) if name.endswith(".json") else tensor_bytes(content))
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the thread of every rank and commit; nothing if none is running.

        Raises:
            UserError: on every rank, if a rank could not write its parts.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure = "" if self._error is None else str(self._error) or type(self._error).__name__
        gathered = self.runtime.all_gather((self._record["position"], self._parts, failure))
        if self._error is not None and not isinstance(self._error, UserError):
            raise self._error
        for _, _, complaint in gathered:
            if complaint:
                raise UserError(complaint)
        if self.runtime.rank == 0:
            if any(where != gathered[0][0] for where, _, _ in gathered):
                raise RuntimeError(f"ranks are at different positions: {[where for where, _, _ in gathered]}")
            parts = {part["name"]: part for _, of_rank, _ in gathered for part in of_rank}
            write_json(self._directory / MARK, {**self._record, "parts": parts})
            prune(self.run, self.keep)
        self.runtime.all_gather(None)


class _Hashing:
    """A file for writing that hashes what passes, so that nothing is read again."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.bytes = file, new_hasher(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def part(self, name: str) -> Part:
        return {"name": name, "bytes": self.bytes, "blake3": self._hash.hexdigest(length=DIGEST_BYTES)}


@contextlib.contextmanager
def _written(directory: Path, name: str, parts: list[Part]) -> Iterator[_Hashing]:
    """A file of the checkpoint, to be written from its first byte to its last."""
    with atomic_write(directory / name) as temporary, temporary.open("wb") as file:
        hashing = _Hashing(file)
        yield hashing
    parts.append(hashing.part(name))


def _write_shard(file: _Hashing, table: Table, first: int, last: int) -> None:
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
    schema = pa.schema([pa.field(name, array.type, nullable=False) for name, array in arrays.items()])
    # Of floats neither a dictionary nor the least and the greatest are worth their time.
    with pq.ParquetWriter(
        pa.PythonFile(file, "w"), schema, compression="none", use_dictionary=False, write_statistics=["image_id"]
    ) as writer:
        writer.write_table(pa.Table.from_arrays(list(arrays.values()), schema=schema))
