"""A committed checkpoint, opened for reading."""

import dataclasses
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from glo_core.checkpoint.layout import (
    CODES_METADATA,
    MARK,
    CheckpointRecord,
    is_committed,
    newest_checkpoint_directory,
    shard_name,
)
from glo_core.checkpoint.pruning import lock_for_reading
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.common.arrays import Int64Array
from glo_core.common.arrow_files import read_arrow
from glo_core.common.digests import digest_file, digest_json
from glo_core.common.errors import CheckpointError, one_line
from glo_core.common.files import differences, not_whole
from glo_core.common.records import read_record
from glo_core.common.tensor_files import read_tensors
from glo_core.decoder.config import ResolvedDecoderConfig, Shape
from glo_core.decoder.record import DecoderRecord


class Checkpoint:
    """A committed checkpoint, opened for reading; parts are verified as they are read."""

    def __init__(self, directory: Path) -> None:
        """Open the checkpoint in `directory`; it is not deleted by its training as long as this object lives.

        Raises:
            CheckpointError: if its mark is missing or damaged.
        """
        try:
            weakref.finalize(self, os.close, lock_for_reading(directory / MARK))
        except FileNotFoundError:
            raise CheckpointError(f"{directory / MARK}: no such file") from None
        self.directory, self.record = directory, read_record(directory / MARK, CheckpointRecord)
        self.position, self.snapshot = self.record.position, self.record.snapshot
        self.code_shards, self.code_dim = self.record.code_shards, self.record.code_dim
        self.projection, self.optimizer = self.record.projection, self.record.code_optimizer
        self.autocast = self.record.autocast

    @classmethod
    def latest(cls, run: Path) -> "Checkpoint":
        """Open the newest committed checkpoint.

        Raises:
            CheckpointError: if the run has none.
        """
        while True:
            directory = newest_checkpoint_directory(run)
            try:
                return cls(directory)
            except CheckpointError:
                if is_committed(directory):
                    raise
            # A training that goes on has deleted it since, and has newer ones.

    def __reduce__(self) -> tuple[type["Checkpoint"], tuple[Path]]:
        """A copy opens, and keeps, the files itself."""
        return type(self), (self.directory,)

    @property
    def code_config(self) -> ResolvedCodeConfig:
        """A config with the codes' dimension and projection; the other fields have their defaults."""
        return ResolvedCodeConfig(dim=self.code_dim, projection=self.projection)

    @property
    def digest(self) -> str:
        """Digest of position, snapshot and every part, in hex."""
        record = dataclasses.asdict(self.record)
        return digest_json({key: record[key] for key in ("position", "snapshot", "parts")})

    @property
    def _remedy(self) -> str:
        return f"delete {self.directory} to go on from an older checkpoint"

    def require_parts(self) -> None:
        """Look whether every part is there and of its length; nothing is read.

        Raises:
            CheckpointError: if one is missing or cut short.
        """
        for name in self.record.parts:
            self.part(name, contents=False)

    def part(self, name: str, *, contents: bool = True) -> Path:
        """The path of a part, verified; `contents=False` leaves its bytes unread.

        Raises:
            CheckpointError: if it is missing, cut short or altered.
        """
        path, expected, remedy = self.directory / name, self.record.parts.get(name), self._remedy
        if expected is None:
            raise CheckpointError(f"{self.directory / MARK}: lists no part {name}; {remedy}")
        if not path.exists():
            raise CheckpointError(f"{path}: missing from the checkpoint; {remedy}")
        if path.stat().st_size != expected.bytes:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes where checkpoint.json says {expected.bytes}; "
                f"the file is cut short: {remedy}"
            )
        if contents and digest_file(path) != expected.blake3:
            raise CheckpointError(f"{path}: its bytes are not those that were written (BLAKE3 differs); {remedy}")
        return path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `<name>.safetensors`, on the CPU; errors as of `part`."""
        return read_tensors(self.part(f"{name}.safetensors"))

    def shard(self, shard: int, columns: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Columns of one code shard, by name: `image_id` int64 `[n]`, `code` and Adam's moments `[n, code_dim]`, ...

        Args:
            shard: its number.
            columns: names; None for all.

        Raises:
            CheckpointError: if the part is missing, cut short or altered.
        """
        table = read_arrow(self.part(shard_name(shard)), columns, CheckpointError)
        metadata = table.schema.metadata or {}
        if any(metadata.get(key.encode()) != value.encode() for key, value in CODES_METADATA.items()):
            raise CheckpointError(
                f"{self.directory / shard_name(shard)}: is not of the format {CODES_METADATA['format']}, version "
                f"{CODES_METADATA['format_version']}, which this program reads; update it, or copy the file back"
            )
        try:
            return {name: _as_numpy(table.column(name).combine_chunks()) for name in table.column_names}
        except pa.ArrowInvalid as error:  # A null, or a column that is not of numbers
            raise CheckpointError(not_whole(self.directory / shard_name(shard), "Arrow", error)) from None

    def decoder(self, module: torch.nn.Module | None = None, allow_kind: str | None = None) -> torch.nn.Module:
        """The EMA decoder, in eval mode, on the CPU.

        Args:
            module: the decoder itself, of a run whose decoder was a module; it is copied.
            allow_kind: the class that may be imported for it, as package.module:Class.

        Raises:
            CheckpointError: if the decoder is of the user's and neither is given, or `module` has other weights.
        """
        decoder = self.decoder_record().decoder(module, allow_kind)
        tensors = self.tensors("ema")
        decoder.to(next(value.dtype for value in tensors.values() if value.is_floating_point()))
        try:
            decoder.load_state_dict(tensors)
        except RuntimeError as error:  # PyTorch lists names and shapes on many lines.
            raise CheckpointError(f"{self.directory}: the decoder has other weights; {one_line(error)[:300]}") from None
        return decoder.eval()

    def codes(self) -> tuple[Int64Array, npt.NDArray[Any]]:
        """Every image id, int64 `[n]` ascending, and its code, `[n, code_dim]`; errors as of `shard`."""
        shards = [self.shard(s, ["image_id", "code"]) for s in range(self.code_shards)]
        ids = np.concatenate([shard["image_id"] for shard in shards])
        order = np.argsort(ids)
        return ids[order], np.concatenate([shard["code"] for shard in shards])[order]

    def decoder_record(self) -> DecoderRecord:
        """The content of `decoder.json`; errors as of `part`."""
        return read_record(self.part("decoder.json"), DecoderRecord)

    def decoder_differences(self, config: ResolvedDecoderConfig, shape: Shape) -> Sequence[str]:
        """A line `key: old -> new` for every setting in which a decoder of `config` and `shape` differs."""
        old, new = self.decoder_record(), DecoderRecord.of(config, shape)
        # Which rows share batch statistics belongs to a batch size; a decoder of the same weights may have another one.
        old_config = dataclasses.replace(old.config, norm_group=new.config.norm_group)
        return differences(
            {"decoder": dataclasses.asdict(old_config), **old.shape._asdict()},
            {"decoder": dataclasses.asdict(new.config), **new.shape._asdict()},
        )


def _as_numpy(column: Any) -> npt.NDArray[Any]:
    """A column of numbers, `[n]`, or of lists of d numbers each, `[n, d]`, without a copy."""
    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return column.to_numpy()
