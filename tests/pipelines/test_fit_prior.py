"""The prior is fitted to the codes of images that are still in the dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from glo_core import Checkpoint, Dataset
from glo_core.common.location import Location
from glo_core.common.records import write_record
from pipelines.common.records import RunRecord
from pipelines.config import FitPriorJob
from pipelines.fit_prior import fit_prior, removed_since
from pipelines.preprocess.removal import remove_images
from tests.helpers.paths import ROOT


@pytest.mark.usefixtures("session")
def test_codes_of_removed_images_are_left_out(tmp_path: Path) -> None:
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
