"""A checkpoint is keyed by code shard and is committed whole: parts first, `checkpoint.json` last.

every rank writes its shards | all ranks meet | rank 0 writes the mark | older ones are deleted
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from glo_core.codes import CodeTable
from glo_core.decoder import DecoderConfig, SeedDecoder
from glo_core.files import (
    FORMAT_VERSION,
    UserError,
    digest_file,
    digest_json,
    read_json,
    read_parquet,
    read_tensors,
    replacing,
    write_bytes,
    write_json,
)
from glo_core.hashing import Int64Array
from glo_core.step import Learner

MARK = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where training stands: at the boundary before `step` of `epoch`."""

    images_seen: int = 0
    phase: int = 0
    epoch: int = 0
    step: int = 0


def save_checkpoint(
    run: Path,
    learner: Learner,
    position: Position,
    *,
    shards: Sequence[int],
    code_shards: int,
    snapshot: str,
    keep: int = 2,
) -> Path:
    """Write and commit `<run>/checkpoints/<images seen>`; every rank calls this at the same position.

    Args:
        shards: the code shards of this rank.
        snapshot: digest of the dataset's snapshot trained on.
        keep: how many committed checkpoints to leave.
    """
    runtime, table, config = learner.runtime, learner.table, learner.config
    directory = run / "checkpoints" / str(position.images_seen)
    if runtime.gather((directory / MARK).exists())[0]:
        return directory  # Committed before the interruption: whatever is finished is not written again.
    parts = [_write_shard(directory, table, shard, code_shards) for shard in shards]
    if runtime.rank == 0:
        parts += _write_decoder(directory, learner)
    gathered = runtime.gather((dataclasses.asdict(position), parts))
    if runtime.rank == 0:
        if any(where != gathered[0][0] for where, _ in gathered):
            raise RuntimeError(f"ranks are at different positions: {[where for where, _ in gathered]}")
        write_json(
            directory / MARK,
            {
                "format_version": FORMAT_VERSION,
                "position": dataclasses.asdict(position),
                "snapshot": snapshot,
                "code_shards": code_shards,
                "code_dim": config.code.dim,
                "projection": config.code.projection,
                "precision": config.precision,
                "parts": {part["name"]: part for _, of_rank in gathered for part in of_rank},
            },
        )
        for old in committed(run)[:-keep]:
            (old / MARK).unlink()  # First the mark, so that a half deleted checkpoint is none.
            shutil.rmtree(old)
    runtime.gather(None)
    return directory


def _part(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    return {"name": name, "bytes": path.stat().st_size, "blake2b": digest_file(path)}


def _write_decoder(directory: Path, learner: Learner) -> list[dict[str, Any]]:
    decoder = learner.decoder
    shape = {"code_dim": decoder.code_dim, "resolution": decoder.resolution, "channels": decoder.channels}
    write_json(
        directory / "decoder.json",
        {"format_version": FORMAT_VERSION, "config": dataclasses.asdict(learner.config.decoder), **shape},
    )
    names = [name for name, _ in decoder.named_parameters()]
    state = learner.optimizer.state_dict()["state"]
    optimizer = {f"{names[i]}/{key}": value for i, values in state.items() for key, value in values.items()}
    for name, tensors in [
        ("decoder", decoder.state_dict()),
        ("averaged", learner.averaged.decoder.state_dict()),
        ("optimizer", optimizer),
    ]:
        # Safetensors keeps plain row-major tensors: the memory format is the device's business.
        write_bytes(directory / f"{name}.safetensors", save({k: v.cpu().contiguous() for k, v in tensors.items()}))
    return [
        _part(directory, name)
        for name in ("decoder.json", "decoder.safetensors", "averaged.safetensors", "optimizer.safetensors")
    ]


def shard_name(shard: int) -> str:
    return f"codes/shard={shard:03d}.parquet"


def _columns(table: CodeTable) -> dict[str, torch.Tensor]:
    """The tensors that travel with the codes, by column."""
    raw = {"raw": table.raw} if table.config.projection == "sphere" else {"code": table.raw}
    return {**raw, "exp_avg": table.exp_avg, "exp_avg_sq": table.exp_avg_sq, "num_updates": table.num_updates}


def _write_shard(directory: Path, table: CodeTable, shard: int, code_shards: int) -> dict[str, Any]:
    places = np.flatnonzero(table.ids % code_shards == shard)
    rows = torch.from_numpy(places).to(table.raw.device)
    columns = {"code": table.codes(rows)} | {name: column[rows] for name, column in _columns(table).items()}
    arrays = {"image_id": pa.array(table.ids[places])}
    for name, column in columns.items():
        values = column.cpu().numpy()
        flat = pa.array(values.reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    name = shard_name(shard)
    with replacing(directory / name) as temporary:
        pq.write_table(pa.table(arrays), temporary, compression="none")
    return _part(directory, name)


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first."""
    marks = (run / "checkpoints").glob(f"*/{MARK}")
    return sorted((mark.parent for mark in marks if mark.parent.name.isdigit()), key=lambda path: int(path.name))


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

    def decoder(self) -> SeedDecoder:
        """The decoder with averaged weights, in eval mode, on the CPU."""
        record = read_json(self.part("decoder.json"))
        config = DecoderConfig(**{**record["config"], "filters": tuple(record["config"]["filters"])})
        decoder = SeedDecoder(
            config, code_dim=record["code_dim"], resolution=record["resolution"], channels=record["channels"]
        )
        tensors = self.tensors("averaged")
        decoder.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
        return decoder.eval()

    def codes(self) -> tuple[Int64Array, np.ndarray[Any, Any]]:
        """Every image id, int64 `[n]` ascending, and its code, `[n, code_dim]`."""
        shards = [self.shard(s, ["image_id", "code"]) for s in range(self.code_shards)]
        ids = np.concatenate([shard["image_id"] for shard in shards])
        order = np.argsort(ids)
        return ids[order], np.concatenate([shard["code"] for shard in shards])[order]

    def restore(self, learner: Learner, shards: Sequence[int]) -> None:
        """Bring `learner` to this checkpoint's state. Rows that it does not hold keep their start."""
        learner.decoder.load_state_dict(self.tensors("decoder"))
        learner.averaged.decoder.load_state_dict(self.tensors("averaged"))
        parameters = list(learner.decoder.parameters())
        names = {name: i for i, (name, _) in enumerate(learner.decoder.named_parameters())}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in self.tensors("optimizer").items():
            name, _, slot = key.rpartition("/")
            parameter = parameters[names[name]]
            if value.shape == parameter.shape:
                # The fused optimizer walks parameter and state side by side: both need the same memory format.
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            state.setdefault(names[name], {})[slot] = value
        learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": state})
        for shard in shards:
            self._restore_shard(learner.table, shard)

    def _restore_shard(self, table: CodeTable, shard: int) -> None:
        stored = self.shard(shard)
        mine = np.flatnonzero(table.ids % self.code_shards == shard)
        kept, here, there = np.intersect1d(table.ids[mine], stored["image_id"], return_indices=True)
        if not len(kept):
            return
        rows = torch.from_numpy(mine[here]).to(table.raw.device)
        for name, column in _columns(table).items():
            column[rows] = torch.from_numpy(stored[name][there]).to(column)
