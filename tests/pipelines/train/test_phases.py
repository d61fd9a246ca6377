"""How long a training is to be where nobody said it: for a new run, an interrupted one, one whose dataset has grown."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import glo_core as glo
from glo_core.common.errors import CheckpointError, ConfigError
from glo_core.common.location import Location
from glo_core.common.records import write_record
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.training import phases
from glo_core.training.config import ResolvedTrainConfig
from pipelines.common.records import PhaseRecord, RunRecord, TrainDone
from pipelines.common.stage import identity_of
from pipelines.train.config import TrainJob
from pipelines.train.job import _require_trainable
from pipelines.train.phases import next_phase, resolve_recipe
from pipelines.train.trainable import require_buildable


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has seen 96 images, where the rule wants 96."""
    monkeypatch.setattr(phases, "images_to_see", lambda _: 96)
    images = glo.TensorImages(torch.randint(0, 256, (48, 8, 8, 1), dtype=torch.uint8))
    config = glo.TrainConfig(batch_size=16, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(filters=(4,)))
    glo.train_phase(config, images, glo.Phase(target=96), run=tmp_path / "run")
    return tmp_path / "run"


def target(run: Path, *, digest: str = "old", finished: bool, begun: int = 96, images: int | None = None) -> int | None:
    phases = (PhaseRecord(start=0, target=begun, snapshot="old"),)
    record = RunRecord(stage="train", identity={}, inputs={}, paths={}, versions={}, phases=phases)
    done = TrainDone(images_seen=96, psnr=20.0, pca_psnr=20.0, phase=0, snapshot="old")
    stage: Any = SimpleNamespace(record=record, done=done if finished else None)
    dataset: Any = SimpleNamespace(num_train=50, digest=digest, at=lambda _: None)
    phase = next_phase(stage, TrainJob(dataset=Location("/d"), run=run, images=images), dataset)
    if phase is None:
        assert stage.record == record
        return None
    # The last phase of the record is the one to train.
    last = stage.record.phases[-1]
    assert (phase.number, phase.start, phase.target) == (len(stage.record.phases) - 1, last.start, last.target)
    return phase.target


def test_a_finished_run_on_the_same_images_has_nothing_to_do(run: Path) -> None:
    assert target(run, finished=True) is None


def test_a_finished_run_stays_so_whatever_the_rule_has_become(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "images_to_see", lambda _: 500)
    assert target(run, finished=True) is None
    assert target(run, digest="new", finished=True) == 500


def test_a_finished_run_is_not_done_without_the_checkpoint_that_it_names(run: Path) -> None:
    newest = run / "checkpoints/96"
    (newest / "codes/shard=003.arrow").unlink()
    assert target(run, finished=True) == 96  # Training says which part is missing, and what to do.
    shutil.copytree(newest, run / "checkpoints/64")
    mark = run / "checkpoints/64/checkpoint.json"
    mark.write_text(mark.read_text().replace('"images_seen": 96', '"images_seen": 64'))
    shutil.rmtree(newest)
    assert target(run, finished=True) == 96


def test_images_that_came_are_seen_an_epoch_at_least(run: Path) -> None:
    assert target(run, digest="new", finished=True) == 96 + 50


def test_an_interrupted_run_keeps_its_target(run: Path) -> None:
    assert target(run, digest="new", finished=False, begun=777) == 777


def test_a_requested_target_wins(run: Path) -> None:
    assert target(run, digest="new", finished=True, images=1000) == 1000


def test_an_interrupted_run_refuses_a_target_that_it_has_passed(run: Path) -> None:
    line = r"`images` \(=90\) must be above the 96 images that .* has seen, or be 777, where its phase ends"
    with pytest.raises(ConfigError, match=line):
        target(run, finished=False, begun=777, images=90)


def test_the_rules_choice_stays_when_the_dataset_grows(tmp_path: Path) -> None:
    dataset: Any = SimpleNamespace(num_train=48, config=SimpleNamespace(resolution=64, code_shards=32))
    job = TrainJob(dataset=Location("/d"), run=tmp_path)
    first = resolve_recipe(job, dataset)
    identity = identity_of(first, ResolvedTrainConfig)
    record = RunRecord(stage="train", identity=identity, inputs={}, paths={}, versions={})
    write_record(tmp_path / "run.json", record)
    grown: Any = SimpleNamespace(num_train=10**6, config=SimpleNamespace(resolution=64, code_shards=32))
    assert resolve_recipe(job, grown) == first
    del identity["code"]["dim"]
    write_record(tmp_path / "run.json", dataclasses.replace(record, identity=identity))
    with pytest.raises(CheckpointError, match=r"/run.json: identity: lacks the key 'code.dim'; the file is damaged"):
        resolve_recipe(job, grown)
    new = resolve_recipe(TrainJob(dataset=Location("/d"), run=tmp_path / "other"), grown)
    assert (new.batch_size, new.code.dim, new.decoder.filters) == (256, 64, (384, 192, 96, 48))


@pytest.mark.parametrize(
    ("images", "changes", "line"),
    [
        (0, {}, "/d: has no training image"),
        (
            9,
            {"decoder": glo.DecoderConfig(kind="no_such:Decoder")},
            "`decoder.kind` (=no_such:Decoder): ModuleNotFoundError",
        ),
        (
            9,
            {"loss": "perceptual", "perceptual_network": "no_such:net"},
            "`perceptual_network` (=no_such:net): ModuleNot",
        ),
        (9, {"decoder": glo.DecoderConfig(filters=(4,))}, "/d: `decoder.filters`"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    images: int, changes: dict[str, Any], line: str
) -> None:
    config = ResolvedDatasetConfig(resolution=32, channels=1)
    dataset: Any = SimpleNamespace(path="/d", num_train=images, config=config)
    job = TrainJob(dataset=Location("/d"), run=Path("/r"), batch_size=16, code=glo.CodeConfig(dim=3), **changes)
    with pytest.raises(glo.UserError) as caught:
        _require_trainable(job, resolve_recipe(job, dataset), dataset)
        require_buildable(resolve_recipe(job, dataset), dataset)
    assert str(caught.value).startswith(line)
