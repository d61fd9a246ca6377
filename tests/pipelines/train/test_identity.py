"""What belongs to a stage's identity and what does not, field by field: a new field must be put on a list here."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import pytest

import glo_core as glo
from glo_core.common.location import Location
from pipelines.common import stage as stage_module
from pipelines.common.stage import Stage
from pipelines.config import EvaluateJob, FitPriorJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.fit_prior import fit_prior
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess
from pipelines.render import render
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training
from tests.helpers.paths import ROOT
from tests.helpers.write_images import write_images

GOLDEN = ROOT / "tests/golden/v1"

TRACKING = {"tracking_uri": "http://127.0.0.1:9", "experiment": "another"}
"""Of every job: where runs are followed"""

TRAIN_IDENTITY = {
    "seed": 1,
    "batch_size": 48,
    "loss": "l1",
    "perceptual_network": "package.module:network",
    "precision": "float64",
    "window": 100,
    "optimizer": "sgd",
    "learning_rate": 0.25,
    "beta1": 0.25,
    "beta2": 0.25,
    "schedule": "step",
    "warm_up": 1000,
    "lr_gamma": 0.25,
    "lr_step_images": 1000,
    "clip_norm": 0.25,
    "ema_half_life": 1000.0,
    "code.dim": 7,
    "code.init": "random",
    "code.init_scale": 0.25,
    "code.projection": "ball",
    "code.optimizer": "sgd",
    "code.learning_rate": 0.25,
    "code.schedule": "step",
    "code.beta1": 0.25,
    "code.beta2": 0.25,
    "code.weight_decay": 0.25,
    "decoder.kind": "dcgan",
    "decoder.filters": (5,),
    "decoder.kernel_size": 5,
    "decoder.batch_norm_momentum": 0.25,
    "decoder.norm_group": 4,
    "decoder.modulation": True,
    "pyramid.levels": 1,
    "pyramid.falloff": 0.5,
}
"""Fields of a training that decide its result, each with another value"""
TRAIN_EXECUTION = TRACKING | {
    "images": 5000,
    "workers": "2",
    "device": "cpu",
    "cpus_per_worker": 0.5,
    "max_failures": 7,
    "cache": "disk",
    "autocast": "bfloat16",
    "compile": "on",
    "scratch": Path("/scratch"),
    "intervals.report": 77,
    "intervals.checkpoint": 77,
    "intervals.checkpoint_minutes": 7.0,
    "intervals.grid": 77,
}
"""Fields of a training that leave the result alone, or make it longer"""
TRAIN_PLACES = {"dataset", "run", "warm_start"}
"""Inputs, which are compared by digest, and the directory itself"""

RENDER_IDENTITY = {"columns": 3, "rows": 3, "neighbors": 2, "seed": 1}
EVALUATE_IDENTITY = {"held_out": 3, "restarts": 2, "steps": 7, "learning_rate": 0.25, "seed": 1}
DECODING_EXECUTION = TRACKING | {"decoder_kind": "own_decoders:Own", "dataset": Location("/moved/dataset")}
"""Fields of a stage that decodes, which leave its result alone"""
FIT_PRIOR_IDENTITY = {"kinds": ("unit",)}

PREPROCESS_IDENTITY = {
    "resolution": 32,
    "channels": 3,
    "tight_crop": 12,
    "background": "#000000",
    "draft": False,
    "srgb": False,
    "max_pixels": 1000,
    "max_bytes": 1000,
    "min_side": 2,
    "allow_truncated": True,
    "code_shards": 8,
    "seed": 1,
    "holdout": 0.25,
    "group_by": "(.)",
}
"""Fields of a dataset that are fixed when it is made, each with another value"""
PREPROCESS_EXECUTION = TRACKING | {"on_change": "replace", "retry_rejected": True, "yes": True}
PREPROCESS_PLACES = {"input", "list_stores", "dataset", "remove", "erase", "discard_plan"}
"""What is read, where it goes, and what is to go"""


def names_of_fields(config: type, prefix: str = "") -> Iterator[str]:
    """Every field of a configuration, those of nested ones as `outer.inner`."""
    kinds = get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from names_of_fields(kinds[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def changed(job: Any, name: str, value: object) -> Any:
    """`job` with another value of the field `name`, which may be `outer.inner`."""
    outer, _, inner = name.partition(".")
    if inner:
        value = changed(getattr(job, outer), inner, value)
    assert getattr(job, outer) != value
    return dataclasses.replace(job, **{outer: value})


@pytest.mark.parametrize(
    ("job", "inside", "outside"),
    [
        (TrainJob, TRAIN_IDENTITY, TRAIN_EXECUTION.keys() | TRAIN_PLACES),
        (RenderJob, RENDER_IDENTITY, DECODING_EXECUTION.keys() | {"run"}),
        (EvaluateJob, EVALUATE_IDENTITY, DECODING_EXECUTION.keys() | {"run"}),
        (FitPriorJob, FIT_PRIOR_IDENTITY, TRACKING.keys() | {"run"}),
        (PreprocessJob, PREPROCESS_IDENTITY, PREPROCESS_EXECUTION.keys() | PREPROCESS_PLACES),
    ],
)
def test_every_field_is_on_one_list(job: type, inside: Mapping[str, object], outside: set[str]) -> None:
    names = sorted(names_of_fields(job))
    assert sorted([*inside, *outside]) == names


class OpenedError(Exception):
    """A stage has agreed with its record."""


@pytest.fixture
def open_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Begin a stage up to where its record is compared with what is requested, and write the record."""

    def opened(*arguments: Any, **options: Any) -> NoReturn:
        Stage(*arguments, **options).save()
        raise OpenedError

    def call(command: Callable[[Any], object], job: Any) -> None:
        monkeypatch.setattr(stage_module, "Stage", opened)
        with pytest.raises(OpenedError):
            command(job)

    return call


def refused(command: Callable[[Any], object], job: Any, complaint: str) -> None:
    with pytest.raises(glo.UserError, match=complaint):
        command(job)


@pytest.fixture
def training(tmp_path: Path, open_only: Callable[..., None]) -> TrainJob:
    """A training whose record is written."""
    decoder = glo.DecoderConfig(kind="seed", filters=(4,), kernel_size=3)
    dataset, run = Location(GOLDEN / "dataset"), tmp_path / "run"
    job = TrainJob(dataset=dataset, run=run, batch_size=8, code=glo.CodeConfig(dim=3), decoder=decoder)
    open_only(run_training, job)
    return job


NEEDS: dict[str, Any] = {
    "decoder.kernel_size": {},
    "decoder.kind": {"kernel_size": glo.DecoderConfig.kernel_size},
    "decoder.modulation": {"kind": "residual", "kernel_size": glo.DecoderConfig.kernel_size},
}
"""What the decoder of the saved run must be, for a field to have another value"""


@pytest.mark.parametrize("name", TRAIN_IDENTITY)
def test_a_field_that_decides_a_training_is_refused_on_its_run(
    name: str, training: TrainJob, tmp_path: Path, open_only: Callable[..., None]
) -> None:
    if name in NEEDS:
        decoder = dataclasses.replace(training.decoder, **NEEDS[name])
        training = dataclasses.replace(training, decoder=decoder, run=tmp_path / "other")
        open_only(run_training, training)
    other = changed(training, name, TRAIN_IDENTITY[name])
    refused(run_training, other, rf"another recipe \({name.replace('.', '[.]')}: ")


@pytest.mark.parametrize("name", TRAIN_EXECUTION)
def test_a_field_of_how_a_training_is_carried_out_is_none_of_its_identity(
    name: str, training: TrainJob, open_only: Callable[..., None]
) -> None:
    record = (training.run / "run.json").read_bytes()
    open_only(run_training, changed(training, name, TRAIN_EXECUTION[name]))
    assert (training.run / "run.json").read_bytes() == record


def test_a_training_knows_its_dataset_by_digest_and_its_directory_by_nothing(
    training: TrainJob, tmp_path: Path, open_only: Callable[..., None]
) -> None:
    shutil.copytree(GOLDEN / "dataset", tmp_path / "moved")
    training.run.rename(tmp_path / "renamed")
    moved = dataclasses.replace(training, dataset=Location(tmp_path / "moved"), run=tmp_path / "renamed")
    open_only(run_training, moved)
    refused(run_training, dataclasses.replace(moved, warm_start=GOLDEN / "run"), r"other inputs \(warm_start: ")


@pytest.fixture
def run_with_checkpoint(training: TrainJob) -> Path:
    shutil.copytree(GOLDEN / "run/checkpoints", training.run / "checkpoints")
    return training.run


@pytest.mark.parametrize(
    ("command", "kind", "identity", "execution"),
    [
        (fit_prior, FitPriorJob, FIT_PRIOR_IDENTITY, TRACKING),
        (evaluate, EvaluateJob, EVALUATE_IDENTITY, DECODING_EXECUTION),
    ],
)
def test_a_stage_after_training_is_its_own_fields_alone(
    command: Any,
    kind: Any,
    identity: dict[str, Any],
    execution: dict[str, Any],
    run_with_checkpoint: Path,
    open_only: Callable[..., None],
) -> None:
    job = kind(run=run_with_checkpoint)
    check_fields(command, job, identity, execution, open_only)


@pytest.mark.usefixtures("session")
def test_the_grids_are_their_own_fields_alone(
    run_with_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, open_only: Callable[..., None]
) -> None:
    with monkeypatch.context() as undone:
        undone.setattr(stage_module, "Stage", Stage)
        fit_prior(FitPriorJob(run=run_with_checkpoint))
    check_fields(render, RenderJob(run=run_with_checkpoint), RENDER_IDENTITY, DECODING_EXECUTION, open_only)


def check_fields(
    command: Any, job: Any, identity: dict[str, Any], execution: dict[str, Any], open_only: Callable[..., None]
) -> None:
    open_only(command, job)
    for name, value in execution.items():
        open_only(command, changed(job, name, value))
    for name, value in identity.items():
        refused(command, changed(job, name, value), rf"another recipe \({name}: ")
    moved = job.run.rename(job.run.parent / "moved")
    open_only(command, dataclasses.replace(job, run=moved))


@pytest.mark.usefixtures("session")
def test_a_dataset_is_its_configuration_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6, seed=0)
    job = PreprocessJob(
        input=(Location(tmp_path / "images"),), dataset=Location(tmp_path / "d"), resolution=16, channels=1
    )
    preprocess(job)
    record = (tmp_path / "d/dataset.json").read_bytes()
    for name, value in PREPROCESS_IDENTITY.items():
        refused(preprocess, changed(job, name, value), rf"another configuration \({name}: ")
    for name, value in PREPROCESS_EXECUTION.items():
        assert preprocess(changed(job, name, value)) == {}  # Nothing is done again.
    (tmp_path / "d").rename(tmp_path / "moved")
    assert preprocess(dataclasses.replace(job, dataset=Location(tmp_path / "moved"))) == {}
    write_images(tmp_path / "more", 2, seed=1)
    more = (Location(tmp_path / "images"), Location(tmp_path / "more"))
    assert preprocess(dataclasses.replace(job, dataset=Location(tmp_path / "moved"), input=more))["train"] == 2
    preprocess(dataclasses.replace(job, dataset=Location(tmp_path / "moved"), remove=("0",)))
    assert (tmp_path / "moved/dataset.json").read_bytes() == record
