"""The result does not depend on how many processes share the work. Real processes, gloo, float64."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import glo_core as glo
from glo_core.checkpoint.layout import committed_checkpoints

SCRIPT = Path(__file__).with_name("train_ranks.py")


def launch(world_size: int, run: Path, *arguments: int) -> subprocess.CompletedProcess[str]:
    run.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), str(world_size), str(run), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def train(world_size: int, run: Path, target: int) -> np.ndarray:
    done = launch(world_size, run, target)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses_of(run)


def losses_of(run: Path) -> np.ndarray:
    """Images seen and loss of each report, `[reports, 2]`."""
    return np.array(json.loads((run / "losses.json").read_text()))[:, :2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    run = tmp_path_factory.mktemp("alone")
    return run, train(1, run, 1200)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("three")
    train(3, run, 1200)
    return run


@pytest.mark.parametrize("world_size", [2, 3])
def test_losses_and_codes_are_those_of_one_process(
    alone: tuple[Path, np.ndarray], three: Path, tmp_path: Path, world_size: int
) -> None:
    run, losses = alone
    assert len(losses) > 70
    other = three if world_size == 3 else tmp_path
    shared = losses_of(three) if world_size == 3 else train(world_size, tmp_path, 1200)
    np.testing.assert_allclose(shared, losses, rtol=1e-9)
    by_clock = int(committed_checkpoints(other)[-2].name) > 640
    assert by_clock == (world_size == 2)
    ids, codes = glo.Checkpoint.latest(run).codes()
    other_ids, other_codes = glo.Checkpoint.latest(other).codes()
    assert ids.tolist() == other_ids.tolist()
    np.testing.assert_allclose(other_codes, codes, rtol=1e-7, atol=1e-9)
    metrics = [json.loads((path / "metrics" / f"{int(losses[-1, 0])}.json").read_text()) for path in (run, other)]
    assert metrics[0]["psnr"] == pytest.approx(metrics[1]["psnr"], rel=1e-9)
    assert metrics[0]["pca_psnr"] == pytest.approx(metrics[1]["pca_psnr"], rel=1e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_of_three_ranks_goes_on_with_fewer(
    alone: tuple[Path, np.ndarray], three: Path, tmp_path: Path, world_size: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(three, run)
    half, end = committed_checkpoints(run)
    shutil.rmtree(end)
    tail = train(world_size, run, 1200)
    assert tail[0, 0] > int(half.name)
    _, losses = alone
    np.testing.assert_allclose(tail, losses[losses[:, 0] > int(half.name)], rtol=1e-9)


def test_a_step_sends_the_gradients_of_the_decoder_the_sums_of_its_norms_and_no_code(three: Path) -> None:
    _, _, sent = np.array(json.loads((three / "losses.json").read_text())).T
    decoder = glo.Checkpoint.latest(three).decoder()
    gradients = 8 * sum(parameter.numel() for parameter in decoder.parameters())
    # Count, sums and sums of squares of norms of 16 and 8 channels, forward and back; a report's 8 numbers.
    norms, report = 2 * 8 * (2 * 16 + 1 + 2 * 8 + 1), 8 * 8
    a_step = np.median(np.diff(sent))
    assert a_step == gradients + norms + report < gradients + 64 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_faults_at_five_random_steps_leave_500_steps_as_they_are(tmp_path: Path, world_size: int) -> None:
    target = 7700
    whole = dict(train(1, tmp_path / "whole", target))
    assert len(whole) >= 500
    run = tmp_path / "struck"
    for end in sorted(np.random.default_rng(world_size).integers(16, target, 5).tolist()):
        assert launch(world_size, run, target, end).returncode != 0
        assert not (run / "losses.json").exists()
    newest = int(committed_checkpoints(run)[-1].name)
    tail = train(world_size, run, target)
    assert newest >= 600
    assert newest < tail[0, 0] < newest + 32  # It went on from there.
    np.testing.assert_allclose([loss for _, loss in tail], [whole[seen] for seen, _ in tail], rtol=1e-9)
    ids, codes = glo.Checkpoint.latest(run).codes()
    ids_whole, codes_whole = glo.Checkpoint.latest(tmp_path / "whole").codes()
    assert ids.tolist() == ids_whole.tolist()
    np.testing.assert_allclose(codes, codes_whole, rtol=1e-9, atol=1e-12)
    difference = np.abs(codes - codes_whole).max()
    print(f"{world_size} ranks, five faults: codes differ by at most {difference:.1e} from one undisturbed process")
