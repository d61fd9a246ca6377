"""Evaluation of a run that was stopped, on a dataset that holds nothing out."""

import logging
from pathlib import Path

import pytest

import glo_core as glo
from glo_core.common.records import read_record, write_record
from pipelines.common.records import EvaluateDone, RunRecord
from pipelines.config import EvaluateJob
from pipelines.evaluate import evaluate
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.tiny_training import Impatient
from tests.helpers.write_images import write_images


@pytest.mark.usefixtures("session")
def test_a_stopped_run_on_a_dataset_without_holdout_is_measured_on_its_training_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 40, seed=9)
    preprocess_small(tmp_path / "dataset", tmp_path / "images", code_shards=32)
    dataset, run = glo.Dataset.open(tmp_path / "dataset"), tmp_path / "run"
    config = glo.TrainConfig(batch_size=16, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(filters=(8, 4)))
    stopped = glo.train_phase(config, dataset.images(), glo.Phase(target=10**6), run=run, runtime=Impatient(after=4))
    assert not stopped.finished
    paths = {"dataset": str(tmp_path / "dataset")}
    write_record(run / "run.json", RunRecord(stage="train", identity={}, inputs={}, paths=paths, versions={}))
    # Neither the PCA that the end of a training keeps, nor its start.
    assert not (run / "metrics").exists()
    (run / "pca_init.safetensors").unlink()
    with caplog.at_level(logging.INFO, "glo"):
        done = evaluate(EvaluateJob(run=run))
    assert "the dataset holds no image out; jobs/preprocess.py --holdout 0.1 makes one" in caplog.text
    assert done.held_out is None
    assert done.train.glo.images == 40
    whole = glo.train_phase(config, dataset.images(), glo.Phase(target=16)).metrics
    assert done.train.pca.psnr == pytest.approx(whole["pca_psnr"], abs=1e-3)
    assert f"{done.train.glo.psnr:.2f} dB" in capsys.readouterr().out
    seen = stopped.position.images_seen
    assert done.images_seen == seen
    assert read_record(run / "evaluation" / str(seen) / "done.json", EvaluateDone) == done
