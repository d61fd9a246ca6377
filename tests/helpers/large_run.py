"""A dataset and a run of many rows, written at once: images of noise, and codes of noise for them.

    python -m tests.helpers.large_run DIRECTORY

prints by how many bytes the peak memory of a driver grows from a run of 1,000 rows to one of a million.
"""

import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import glo_core as glo
from glo_core.checkpoint.layout import CODES_METADATA, MARK, CheckpointRecord, Part, shard_name
from glo_core.common.digests import digest_file
from glo_core.common.location import Location
from glo_core.common.records import read_record, write_record
from glo_core.dataset_format.blocks import BlockEntry, write_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.records import write_config
from glo_core.dataset_format.snapshots import Snapshot, SnapshotCounts, snapshot_path
from pipelines.common.records import RunRecord

SHARDS, DIM, SIDE, ROWS_OF_A_BLOCK, SEEN = 32, 8, 8, 100_000, 64
HELD_OUT_EVERY = 50
ROWS = 1_000_000


def make_large_run(root: Path, count: int) -> Path:
    """`<root>/dataset` and `<root>/run`, which is returned."""
    random = np.random.default_rng(0)
    ids = np.arange(count, dtype=np.int64)
    held_out = ids % (HELD_OUT_EVERY * SHARDS) < SHARDS  # As many of every shard.
    dataset = _write_dataset(Location(root / "dataset"), ids, held_out, random)
    run = root / "run"
    _write_small_run(run)
    directory = run / "checkpoints" / str(SEEN)
    record = read_record(directory / MARK, CheckpointRecord)
    parts = {name: part for name, part in record.parts.items() if not name.startswith("codes/")}
    for shard in range(SHARDS):
        rows = ids[(ids % SHARDS == shard) & ~held_out]
        codes = random.standard_normal((len(rows), DIM)).astype(np.float32)
        codes /= np.linalg.norm(codes, axis=1, keepdims=True)
        column = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), DIM)
        path = directory / shard_name(shard)
        table = pa.table({"image_id": rows, "code": column}, metadata=CODES_METADATA)
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
        parts[shard_name(shard)] = Part(bytes=path.stat().st_size, blake3=digest_file(path))
    changed = {"snapshot": dataset.digest, "parts": parts}
    write_record(directory / MARK, CheckpointRecord(**{**vars(record), **changed}))
    paths = {"dataset": str(root / "dataset")}
    write_record(run / "run.json", RunRecord(stage="train", identity={}, inputs={}, paths=paths, versions={}))
    return run


def _write_dataset(place: Location, ids: np.ndarray, held_out: np.ndarray, random: np.random.Generator) -> Snapshot:
    config = ResolvedDatasetConfig(resolution=SIDE, channels=1, code_shards=SHARDS, holdout=1 / HELD_OUT_EVERY)
    assert place.path is not None
    for folder in ("blocks", "snapshots", "manifest"):
        (place.path / folder).mkdir(parents=True)
    write_config(place, config)
    blocks: list[BlockEntry] = []
    for first in range(0, len(ids), ROWS_OF_A_BLOCK):
        rows = slice(first, min(first + ROWS_OF_A_BLOCK, len(ids)))
        pixels = random.integers(0, 256, (len(ids[rows]), SIDE, SIDE, 1), np.uint8)
        path = place / "blocks" / f"000001-{len(blocks):05d}.arrow"
        blocks.append(write_block(path, ids[rows], pixels, held_out[rows], SHARDS))
    counts = SnapshotCounts(
        files=len(ids), train=int((~held_out).sum()), holdout=int(held_out.sum()), duplicate=0, rejected=0
    )
    snapshot = Snapshot(
        number=1, parent="", digest="5" * 32, counts=counts, rejected={}, removed=(), duplicate_of={}, replaced={},
        blocks=tuple(blocks), sources={}, mlflow_run_id=None, versions={},
    )  # fmt: skip
    write_record(snapshot_path(place, 1), snapshot)
    return snapshot


def _write_small_run(run: Path) -> None:
    """A run on few images, for its decoder and its PCAs."""
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (64, SIDE, SIDE, 1), np.uint8))
    config = glo.TrainConfig(batch_size=32, code=glo.CodeConfig(dim=DIM), decoder=glo.DecoderConfig(filters=(4,)))
    source = glo.TensorImages(images, code_shards=SHARDS)
    glo.train_phase(config, source, glo.Phase(target=SEEN), run=run)
    shutil.rmtree(run / "checkpoints" / str(SEEN) / "codes")
    (run / "checkpoints" / str(SEEN) / "codes").mkdir()


def main(root: Path) -> None:
    """Run the stages after training on both; print the growth of the peak memory, in bytes."""
    import ray

    from pipelines.config import EvaluateJob, FitPriorJob, RenderJob
    from pipelines.evaluate import evaluate
    from pipelines.fit_prior import fit_prior
    from pipelines.render import render

    torch.set_num_threads(1)
    ray.init(log_to_driver=False)
    peaks, images = [], []
    for run in (root / "small" / "run", root / "large" / "run"):
        fit_prior(FitPriorJob(run=run))
        render(RenderJob(run=run, rows=4, columns=4))
        done = evaluate(EvaluateJob(run=run, held_out=300, restarts=1, steps=1))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        assert done.held_out is not None
        images.append(done.held_out.glo.images)
    assert 0 < images[0] < 300 == images[1], images
    print("growth", peaks[1] - peaks[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
