"""An evaluation that is killed goes on; results of another checkpoint are set aside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import glo_core as glo
from glo_core.codes.ridge import RidgeRegression
from glo_core.common.counter_rng import key64, mix64
from glo_core.common.digests import digest
from glo_core.common.records import read_record
from glo_core.evaluation.metrics import ReconstructionSums
from pipelines.common.records import EvaluateDone, RenderDone, read_run_record
from pipelines.config import EvaluateJob, FitPriorJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.evaluate_tasks import HeldOutRows, TrainSums, held_out_rows
from pipelines.fit_prior import fit_prior
from pipelines.render import GridRenderer, render
from tests.helpers.paths import ROOT
from tests.helpers.processes import Head
from tests.helpers.trained_run import CONFIG, make_trained_run


def newest(run: Path) -> str:
    """The name of the run's only checkpoint."""
    (checkpoint,) = (run / "checkpoints").glob("[0-9]*")
    return checkpoint.name


@pytest.mark.parametrize("limit", [None, 1, 5, 9, 100])
@pytest.mark.parametrize("counts", [[], [0, 0], [4], [0, 3, 0, 0, 4, 1, 0], [1] * 9, [20, 1]])
def test_parts_cover_the_held_out_images_of_the_lowest_ids_once(counts: list[int], limit: int | None) -> None:
    names = [f"block{number}" for number in range(len(counts))]
    rows = {name: [(name, row) for row in range(count)] for name, count in zip(names, counts, strict=True)}
    every = [row for name in names for row in rows[name]][:limit]
    covered: list[Any] = []
    for number, part in enumerate(held_out_rows(names, counts, limit, size=3)):
        of_part = [row for name in part.blocks for row in rows[name]]
        assert part.number == number
        assert rows[part.blocks[0]], "a block without held-out images is opened"
        covered += of_part[part.first : part.first + part.num_images]
    assert covered == every


def test_a_part_knows_its_blocks() -> None:
    parts = held_out_rows(["a", "b"], [2, 3], None, size=4)
    assert parts == [HeldOutRows(0, 0, 4, ("a", "b")), HeldOutRows(1, 2, 1, ("b",))]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_with_the_parts_that_it_has(tmp_path: Path, head: Head, session: None) -> None:
    run = make_trained_run(tmp_path, count=90, holdout=0.4)
    directory = run / "evaluation" / newest(run)
    # So many steps that it does not end before it is killed.
    command = [sys.executable, str(ROOT / "jobs/evaluate.py"), "--run", str(run), "--steps", "1000000"]
    environment = os.environ | {"RAY_ADDRESS": head.address}
    driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while len(list(directory.glob("parts-*/train-*"))) < 32:
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    assert not (directory / "done.json").exists()
    # The same recipe, but fewer steps, so that the test need not wait.
    record = json.loads((directory / "run.json").read_text())
    record["identity"]["steps"] = 2
    (directory / "run.json").write_text(json.dumps(record))
    done = evaluate(EvaluateJob(run=run, steps=2))
    assert done.held_out is not None
    assert not list(directory.glob("parts-*"))
    anew = run.parent / "anew"
    shutil.copytree(run, anew, ignore=shutil.ignore_patterns("evaluation"))
    assert evaluate(EvaluateJob(run=anew, steps=2)) == done
    codes = [pq.read_table(path / "evaluation" / directory.name / "held_out.parquet") for path in (run, anew)]
    assert codes[0].equals(codes[1])
    held_out = glo.Dataset.open(tmp_path / "dataset").held_out()
    assert codes[0].column("image_id").to_pylist() == held_out.ids.tolist()


@pytest.mark.usefixtures("session")
def test_finished_parts_are_not_measured_again(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path)
    done = evaluate(EvaluateJob(run=run, steps=2))
    directory = run / "evaluation" / newest(run)
    (directory / "done.json").unlink()
    # As if it had been killed before its last task: figures of another kind show which parts were taken.
    nothing_removed = f"parts-{digest(b'').hex()[:8]}"
    sums = ReconstructionSums(images=1000, squared=1.0, similarity=500.0)
    TrainSums(sums, sums, RidgeRegression(3)).save(directory / nothing_removed / "train-005.safetensors")
    # Damaged parts are measured anew.
    (directory / nothing_removed / "train-006.safetensors").write_bytes(b"no sums")
    (directory / nothing_removed / "held_out-000000.parquet").write_bytes(b"no codes")
    again = evaluate(EvaluateJob(run=run, steps=2))
    assert again.held_out is not None
    assert done.held_out is not None
    assert again.held_out.glo.images == done.held_out.glo.images
    # Without the regression of that part the starts of inversion are others by a little.
    assert again.held_out.glo.psnr == pytest.approx(done.held_out.glo.psnr, abs=1e-3)
    assert again.train.glo.images == done.train.glo.images + 1000 - shard_size(tmp_path, 5)


def shard_size(root: Path, shard: int) -> int:
    return len(glo.Dataset.open(root / "dataset").images([shard]).ids)


@pytest.mark.usefixtures("session")
def test_results_of_another_checkpoint_of_as_many_images_are_set_aside(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path)
    prior = fit_prior(FitPriorJob(run=run))
    grids = render(RenderJob(run=run, rows=2, columns=2))
    (grids / "training_samples.png").write_bytes(b"of the training")
    first = evaluate(EvaluateJob(run=run, steps=2))
    mean = glo.load(run).sample(2, seed=1)
    # The checkpoint was damaged, deleted and trained again, with another seed here to make it another one.
    shutil.rmtree(run / "checkpoints")
    dataset = glo.Dataset.open(tmp_path / "dataset")
    config = glo.TrainConfig(batch_size=16, seed=7, code=CONFIG.code, decoder=CONFIG.decoder)
    glo.train_phase(config, dataset.images(), glo.Phase(target=96), run=run)
    with pytest.raises(glo.UserError, match="no prior is fitted to the newest checkpoint"):
        render(RenderJob(run=run, rows=2, columns=2))
    assert not np.array_equal(glo.load(run).sample(2, seed=1), mean)
    fit_prior(FitPriorJob(run=run))
    assert render(RenderJob(run=run, rows=2, columns=2)) == grids
    second = evaluate(EvaluateJob(run=run, steps=2))
    assert second != first
    assert (grids / "training_samples.png").read_bytes() == b"of the training"
    (aside,) = (run / "evaluation").glob("*-*")
    assert read_record(aside / "done.json", EvaluateDone) == first
    (aside,) = (run / "grids").glob("*-*")
    assert (aside / "reconstructions.png").exists() and read_record(aside / "done.json", RenderDone).grids
    (aside,) = (run / "prior").glob("*-*")
    assert (aside / "full" / "prior.json").exists()
    records = [read_run_record(path) for path in (prior, aside)]
    assert records[0] is not None and records[1] is not None
    assert records[0].mlflow_run_id != records[1].mlflow_run_id
    # Another prior of the same checkpoint: the grids follow it.
    shutil.rmtree(prior)
    fit_prior(FitPriorJob(run=run, kinds=("unit",)))
    render(RenderJob(run=run, rows=2, columns=2))
    assert not (grids / "samples-full.png").exists() and (grids / "samples-unit.png").exists()


@pytest.mark.usefixtures("session")
def test_grids_show_the_images_of_the_lowest_hashes(tmp_path: Path) -> None:
    run = make_trained_run(tmp_path)
    checkpoint, dataset = glo.Checkpoint.latest(run), glo.Dataset.open(tmp_path / "dataset")
    ids, codes = checkpoint.codes()
    order = np.argsort(mix64(key64("render", 3), ids))
    renderer = GridRenderer(RenderJob(run=run, rows=3, columns=4, seed=3), dataset, checkpoint, {})
    assert renderer.chosen.ids.tolist() == ids[order][:12].tolist()
    np.testing.assert_array_equal(renderer.chosen.codes, codes[order][:12])
    few = GridRenderer(RenderJob(run=run, rows=30, columns=4), dataset, checkpoint, {})
    assert sorted(few.chosen.ids.tolist()) == ids.tolist()
    assert few.reconstructions().size[0] > 0 and few.interpolations().size[0] > 0
