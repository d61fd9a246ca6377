"""A checkpoint is keyed by code shard and is committed whole: parts first, `checkpoint.json` last.

`writer.py` writes them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from glo_core.codes import CodeConfig, Table, raw_name
from glo_core.dataset import ImageSource, rows_of_shards
from glo_core.decoder import DecoderConfig, Shape, config_of_record, decoder_of_record, decoder_record
from glo_core.files import UserError, differences, digest_file, digest_json, read_json, read_parquet, read_tensors
from glo_core.growth import Growth
from glo_core.hashing import Int64Array
from glo_core.step import Learner, TrainConfig

MARK = "checkpoint.json"
DECODER_PARTS = ("decoder.json", "averaged.safetensors")
"""What a decoder alone needs"""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: at the boundary before `step` of `epoch`."""

    images_seen: int = 0
    phase: int = 0
    epoch: int = 0
    step: int = 0


def shard_name(shard: int) -> str:
    return f"codes/shard={shard:03d}.parquet"


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first."""
    marks = (run / "checkpoints").glob(f"*/{MARK}")
    return sorted((mark.parent for mark in marks if mark.parent.name.isdigit()), key=lambda path: int(path.name))


def prune(run: Path, keep: int) -> None:
    """Delete committed checkpoints but for the last `keep` and the one of the highest training PSNR."""
    marks = committed(run)
    best = max(marks, key=lambda path: read_json(path / MARK).get("train_psnr") or float("-inf"), default=None)
    for old in marks[:-keep]:
        if old != best:
            (old / MARK).unlink()  # First the mark, so that a half deleted checkpoint is none.
            shutil.rmtree(old)


def sweep_uncommitted(run: Path) -> None:
    """Delete what killed writers left. Call it on one rank, before any rank writes."""
    for path in (run / "checkpoints").glob("*"):
        if not (path / MARK).exists():
            shutil.rmtree(path, ignore_errors=True)


class Checkpoint:
    """A committed checkpoint, opened for reading; parts are verified as they are read."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.record = directory, read_json(directory / MARK)
        self.position = Position(**self.record["position"])
        self.snapshot: str = self.record["snapshot"]
        self.code_shards: int = self.record["code_shards"]
        self.code_dim: int = self.record["code_dim"]
        self.projection: str = self.record["projection"]
        self.optimizer: str = self.record.get("code_optimizer", "adam")

    @classmethod
    def latest(cls, run: Path) -> Self:
        """Open the newest committed checkpoint.

        Raises:
            UserError: if the run has none.
        """
        found = committed(run)
        if not found:
            raise UserError(f"{run}: no checkpoint here; jobs/train.py --run {run} makes one")
        return cls(found[-1])

    @property
    def code_config(self) -> CodeConfig:
        """What is known of the codes: their dimension and projection; the rest is the default."""
        return CodeConfig(dim=self.code_dim, projection=self.projection)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """Digest of the content: position, snapshot and every part."""
        return digest_json({key: self.record[key] for key in ("position", "snapshot", "parts")})

    def part(self, name: str) -> Path:
        """The path of a part, verified.

        Raises:
            UserError: if it is missing, cut short or altered.
        """
        path, expected = self.directory / name, self.record["parts"].get(name)
        remedy = f"delete {self.directory} to go on from an older checkpoint"
        if expected is None:
            raise UserError(f"{self.directory / MARK}: lists no part {name}; {remedy}")
        if not path.exists():
            raise UserError(f"{path}: missing from the checkpoint; {remedy}")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(
                f"{path}: {path.stat().st_size} bytes where checkpoint.json says {expected['bytes']}; "
                f"the file is cut short: {remedy}"
            )
        if digest_file(path) != expected["blake2b"]:
            raise UserError(f"{path}: its bytes are not those that were written (BLAKE2b differs); {remedy}")
        return path

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Tensors of `<name>.safetensors`, on the CPU."""
        return read_tensors(self.part(f"{name}.safetensors"))

    def shard(self, shard: int, columns: Sequence[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
        """Columns of one code shard: `image_id` int64 `[n]`, `code` and Adam's moments `[n, code_dim]`, ..."""
        table = read_parquet(self.part(shard_name(shard)), columns)
        values = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            nested = isinstance(column, pa.FixedSizeListArray)
            flat = column.flatten().to_numpy() if nested else column.to_numpy()
            values[name] = flat.reshape(-1, column.type.list_size) if nested else flat
        return values

    def decoder(self) -> torch.nn.Module:
        """The decoder with averaged weights, in eval mode, on the CPU."""
        decoder = decoder_of_record(read_json(self.part("decoder.json")))
        tensors = self.tensors("averaged")
        decoder.to(next(value.dtype for value in tensors.values() if value.is_floating_point())).load_state_dict(
            tensors
        )
        return decoder.eval()

    def codes(self) -> tuple[Int64Array, np.ndarray[Any, Any]]:
        """Every image id, int64 `[n]` ascending, and its code, `[n, code_dim]`."""
        shards = [self.shard(s, ["image_id", "code"]) for s in range(self.code_shards)]
        ids = np.concatenate([shard["image_id"] for shard in shards])
        order = np.argsort(ids)
        return ids[order], np.concatenate([shard["code"] for shard in shards])[order]

    def start_decoder(self, learner: Learner) -> None:
        """Give `learner` the averaged decoder of this checkpoint, and nothing else of it.

        Raises:
            UserError: if its decoder is of another kind.
        """
        self.require_decoder(learner.config.decoder, learner.shape)
        tensors = self.tensors("averaged")
        learner.decoder.load_state_dict(tensors)
        learner.averaged.decoder.load_state_dict(tensors)

    def require_decoder(self, config: DecoderConfig, shape: Shape) -> None:
        """Raise `UserError` if the decoder here is not of this kind and shape."""
        changed = self._decoder_changes(config, shape)
        if changed:
            raise UserError(
                f"warm_start={self.directory}: has another decoder ({'; '.join(changed)}); give the same settings, "
                "or start without it"
            )

    def _decoder_changes(self, config: DecoderConfig, shape: Shape) -> Sequence[str]:
        """`key: old -> new` for every setting that another decoder would change."""
        record = read_json(self.part("decoder.json"))
        theirs = decoder_record(config_of_record(record), Shape(*(record[name] for name in Shape._fields)))
        return differences(theirs, decoder_record(config, shape))

    def restore(self, learner: Learner, images: ImageSource) -> Growth:
        """Bring `learner` to this checkpoint's state. Rows of `images` that it does not hold keep their start.

        Raises:
            UserError: if `learner` has another optimizer, or a part is damaged.
        """
        optimizer = self.tensors("optimizer")
        # What Adam or SGD keeps of a weight tells which it was; before its first step, neither keeps anything.
        slots = {key.rpartition("/")[2] for key in optimizer}
        for slot, name in (("exp_avg", "adam"), ("momentum_buffer", "sgd")):
            if slot in slots:
                self._refuse(differences({"optimizer": name}, {"optimizer": learner.config.optimizer}))
        learner.decoder.load_state_dict(self.tensors("decoder"))
        learner.averaged.decoder.load_state_dict(self.tensors("averaged"))
        parameters = list(learner.decoder.parameters())
        names = {name: i for i, (name, _) in enumerate(learner.decoder.named_parameters())}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in optimizer.items():
            name, _, slot = key.rpartition("/")
            parameter = parameters[names[name]]
            if value.shape == parameter.shape:
                # The fused optimizer walks parameter and state side by side: both need the same memory format.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            state.setdefault(names[name], {})[slot] = value
        learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": state})
        growth = Growth(self.code_dim)
        for shard, (first, last) in rows_of_shards(images).items():
            self._restore_shard(learner.table, shard, first, last, growth)
        return growth

    def require_recipe(self, config: TrainConfig, images: ImageSource) -> None:
        """Raise `UserError` if the codes and the decoder here are not those of a training by `config`."""
        names = ("dim", "projection", "optimizer")
        held = dict(zip(names, (self.code_dim, self.projection, self.optimizer), strict=True))
        asked = {name: getattr(config.code, name) for name in names}
        shape = Shape(config.code.dim, images.resolution, images.channels)
        self._refuse(
            differences(
                {"code": held, "code_shards": self.code_shards}, {"code": asked, "code_shards": images.code_shards}
            )
            or self._decoder_changes(config.decoder, shape)
        )

    def _refuse(self, changed: Sequence[str]) -> None:
        if changed:
            raise UserError(
                f"{self.directory}: is of another recipe ({'; '.join(changed)}); give the old values, or another run "
                "directory"
            )

    def _restore_shard(self, table: Table, shard: int, first: int, last: int, growth: Growth) -> None:
        stored = self.shard(shard)
        _, here, there = np.intersect1d(table.ids[first:last], stored["image_id"], return_indices=True)
        columns, name_of_raw = table.read(first, last), raw_name(table.config)
        start = columns[name_of_raw][torch.from_numpy(here)].clone()
        for name, column in columns.items():
            column[torch.from_numpy(here)] = torch.from_numpy(stored[name][there]).to(column)
        growth.meet(
            start, torch.from_numpy(stored[name_of_raw][there]), first + np.delete(np.arange(last - first), here)
        )
        table.write(first, columns)
