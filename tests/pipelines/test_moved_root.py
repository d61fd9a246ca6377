"""A root or a dataset that has moved: the stages after training go on, and refuse another dataset."""

import shutil
from pathlib import Path

import mlflow
import pytest

import glo_core as glo
from glo_core.common.location import Location
from pipelines.common.records import read_run_record
from pipelines.config import EvaluateJob, FitPriorJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.fit_prior import fit_prior
from pipelines.render import render
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.trained_run import make_trained_run
from tests.helpers.write_images import write_images

pytestmark = pytest.mark.usefixtures("session")


def dataset_in(directory: Path) -> str:
    """Where the record in `directory` says that the dataset lies."""
    record = read_run_record(directory)
    assert record is not None
    return record.paths["dataset"]


def test_a_root_that_was_moved_as_a_whole_needs_nothing_said(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path / "old")
    fit_prior(FitPriorJob(run=run))
    (tmp_path / "elsewhere").mkdir()
    root = (tmp_path / "old").rename(tmp_path / "elsewhere" / "new")
    run = root / "run"
    grids = render(RenderJob(run=run, rows=2, columns=2))
    done = evaluate(EvaluateJob(run=run, steps=3))
    assert done.held_out is not None
    assert dataset_in(run) == dataset_in(grids) == str(root / "dataset")
    assert len(glo.load(run).images()) == done.train.glo.images
    assert not (tmp_path / "old").exists()
    # The moved database goes on, and its artifacts are those beside it.
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("glo").experiment_id])}
    assert set(runs) == {"preprocess", "fit_prior", "render", "evaluate"}
    assert runs["render"].data.tags["glo.input.prior"] == runs["fit_prior"].info.run_id
    for name, picture in (("preprocess", "new_images.png"), ("render", "reconstructions.png")):
        artifacts = client.list_artifacts(runs[name].info.run_id, "grids")
        assert f"grids/{picture}" in [artifact.path for artifact in artifacts]


def test_a_dataset_that_was_moved_is_named_once(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path)
    fit_prior(FitPriorJob(run=run))
    moved = (tmp_path / "dataset").rename(tmp_path / "photos of faces")
    with pytest.raises(glo.UserError, match=r"dataset: the dataset of .* is not there any more.*`dataset`$"):
        evaluate(EvaluateJob(run=run, steps=3))
    assert not list((run / "evaluation").glob("*/run.json"))  # A mistake leaves no trace.
    evaluate(EvaluateJob(run=run, steps=3, dataset=Location(moved)))
    assert dataset_in(run) == str(moved)
    render(RenderJob(run=run, rows=2, columns=2))  # The run knows it now.
    assert len(glo.load(run).images()) > 0


def test_another_dataset_is_refused_and_the_same_one_elsewhere_preferred(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path / "root")
    fit_prior(FitPriorJob(run=run))
    write_images(tmp_path / "others", 12, seed=77)
    preprocess_small(tmp_path / "other", tmp_path / "others", code_shards=32)
    with pytest.raises(glo.UserError, match=r"other: snapshot \w+ is not of this dataset") as caught:
        render(RenderJob(run=run, dataset=Location(tmp_path / "other")))
    assert "\n" not in str(caught.value)
    # A copy goes on by itself, although another dataset lies where the first one was.
    shutil.copytree(tmp_path / "root", tmp_path / "copy")
    shutil.rmtree(tmp_path / "root" / "dataset")
    shutil.copytree(tmp_path / "other", tmp_path / "root" / "dataset")
    with pytest.raises(glo.UserError, match="is not of this dataset"):
        render(RenderJob(run=run))
    render(RenderJob(run=tmp_path / "copy" / "run", rows=2, columns=2))
    assert dataset_in(tmp_path / "copy" / "run") == str(tmp_path / "copy" / "dataset")


def test_a_finished_stage_opens_neither_dataset_nor_checkpoint_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_trained_run(tmp_path)
    prior = fit_prior(FitPriorJob(run=run))
    grids = render(RenderJob(run=run, rows=2, columns=2))
    done = evaluate(EvaluateJob(run=run, steps=3))
    shutil.rmtree(tmp_path / "dataset")
    (checkpoint,) = (run / "checkpoints").iterdir()
    shutil.rmtree(checkpoint / "codes")
    (checkpoint / "ema.safetensors").unlink()
    capsys.readouterr()
    with caplog.at_level("INFO", "glo"):
        assert fit_prior(FitPriorJob(run=run)) == prior
        assert render(RenderJob(run=run, rows=2, columns=2)) == grids
        assert evaluate(EvaluateJob(run=run, steps=3)) == done
    assert caplog.text.count("is up to date") == 3
    assert f"{done.train.glo.psnr:.2f} dB" in capsys.readouterr().out
