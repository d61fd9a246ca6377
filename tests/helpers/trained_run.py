"""A dataset and a run that was trained on it, without Ray Train: what the stages after training work on."""

from pathlib import Path

import glo_core as glo
from glo_core.common.records import write_record
from pipelines.common.records import RunRecord
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

CONFIG = glo.TrainConfig(batch_size=16, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(filters=(8, 4)))


def make_trained_run(root: Path, *, count: int = 60, images_seen: int = 96, holdout: float = 0.2) -> Path:
    """`<root>/dataset` and `<root>/run`, which is returned."""
    write_images(root / "images", count, seed=9)
    preprocess_small(root / "dataset", root / "images", code_shards=32, holdout=holdout)
    run = root / "run"
    paths = {"dataset": str(root / "dataset")}
    dataset = glo.Dataset.open(root / "dataset")
    record = RunRecord(stage="train", identity={}, inputs={"dataset": dataset.root_digest}, paths=paths, versions={})
    write_record(run / "run.json", record)
    glo.train_phase(CONFIG, dataset.images(), glo.Phase(target=images_seen), run=run)
    return run
