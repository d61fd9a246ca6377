"""The prior is fitted to the codes of images that are still in the dataset."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from glo_core import Checkpoint, Dataset
from glo_core.common.errors import CheckpointError
from glo_core.common.location import Location
from glo_core.common.records import write_record
from pipelines.common.followup import newest_checkpoint, removed_input
from pipelines.common.records import RunRecord, TrainDone
from pipelines.config import FitPriorJob
from pipelines.fit_prior import FIT_PRIOR, fit_prior, removed_since
from pipelines.preprocess.removal import remove_images
from pipelines.render import _fitted_priors
from tests.helpers.paths import ROOT


def copied_root(tmp_path: Path) -> tuple[Path, Path]:
    """A trained run and its dataset."""
    shutil.copytree(ROOT / "tests" / "golden" / "v1", tmp_path / "root")
    run, dataset = tmp_path / "root" / "run", tmp_path / "root" / "dataset"
    record = RunRecord(
        stage="train",
        identity={},
        inputs={},
        paths={"dataset": str(dataset)},
        versions={},
        mlflow_run_id=None,
        phases=(),
    )
    write_record(run / "run.json", record)
    return run, dataset


@pytest.mark.usefixtures("session")
def test_codes_of_removed_images_are_left_out(tmp_path: Path) -> None:
    run, dataset = copied_root(tmp_path)
    checkpoint = Checkpoint.latest(run)
    ids, codes = checkpoint.codes()
    gone = ids[[1, 6]]
    remove_images(Location(dataset), [str(i) for i in gone])
    assert removed_since(run, checkpoint).tolist() == gone.tolist()
    directory = fit_prior(FitPriorJob(run=run, kinds=("full",), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert json.loads((directory / "done.json").read_text())["codes"] == len(ids) - 2
    assert len(Dataset.open(dataset).images().ids) == len(ids) - 2
    from safetensors.numpy import load_file

    expected = codes[~np.isin(ids, gone)].mean(axis=0)
    np.testing.assert_allclose(load_file(directory / "full" / "prior.safetensors")["mean"], expected, rtol=1e-5)


@pytest.mark.usefixtures("session")
def test_a_finished_prior_is_fitted_again_after_a_removal_and_never_without_the_dataset(tmp_path: Path) -> None:
    run, dataset = copied_root(tmp_path)
    checkpoint, job = Checkpoint.latest(run), FitPriorJob(run=run, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    ids, _ = checkpoint.codes()

    def codes() -> int:
        return int(json.loads((fit_prior(job) / "done.json").read_text())["codes"])

    assert codes() == len(ids)
    directory = FIT_PRIOR.directory(run, checkpoint)
    first = (directory / "done.json").stat()
    assert removed_input(run, checkpoint, None, directory) == {}
    assert (codes(), (directory / "done.json").stat()) == (len(ids), first)  # Up to date
    remove_images(Location(dataset), [str(ids[1])])
    with pytest.raises(CheckpointError, match=r"images that were removed since; run jobs/fit_prior\.py"):
        _fitted_priors(run, checkpoint)
    assert codes() == len(ids) - 1
    second = (directory / "done.json").stat()
    assert _fitted_priors(run, checkpoint)[0] == directory
    # The results before are beside; those of now need no dataset.
    assert len(list(directory.parent.glob(f"{directory.name}-*/done.json"))) == 1
    dataset.rename(tmp_path / "gone")
    assert (codes(), (directory / "done.json").stat()) == (len(ids) - 1, second)
    assert _fitted_priors(run, checkpoint)[0] == directory
    # Where it has moved, a stage that is told its place sees it.
    assert removed_input(run, checkpoint, Location(tmp_path / "gone"), directory) != {}


def test_a_run_that_lost_its_last_checkpoint_is_worked_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(ROOT / "tests" / "golden" / "v1" / "run", tmp_path / "run")
    done = TrainDone(images_seen=63, psnr=20.0, pca_psnr=20.0, phase=0, snapshot="0" * 64)
    write_record(run / "done.json", done)
    assert newest_checkpoint(run).position.images_seen == 63
    assert not caplog.records
    write_record(run / "done.json", dataclasses.replace(done, images_seen=126))
    assert newest_checkpoint(run).position.images_seen == 63
    assert "ended at 126 images seen, and that checkpoint is gone; this works on the one at 63" in caplog.text
