"""Every number of every config is finite and within sane limits, or refused at once in one line."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from glo_core import TrainConfig
from glo_core.common.config import Config, MustExist
from glo_core.common.errors import UserError
from glo_core.common.location import Location
from jobs.cli import parse
from jobs.values import unwrap
from pipelines.config import EvaluateJob, FitPriorJob, InspectJob, PipelineJob, RenderJob
from pipelines.preprocess.config import PreprocessJob
from pipelines.train.config import TrainJob

JOBS: dict[str, type[Config]] = {
    "preprocess": PreprocessJob, "train": TrainJob, "fit_prior": FitPriorJob, "render": RenderJob,
    "evaluate": EvaluateJob, "inspect_dataset": InspectJob, "pipeline": PipelineJob,
}  # fmt: skip
MINUS_ONE_IS_VALID = {"seed"}
A_BILLION_IS_VALID = {
    "seed", "images", "window", "warm_up", "lr_step_images", "clip_norm", "ema_half_life", "max_failures", "held_out",
    "report", "grid", "checkpoint", "max_pixels", "max_bytes",
}  # fmt: skip


def numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, type]]:
    """The dotted name and the type of each number of `config`, and of the configs in it."""
    hints = get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, _, _ = unwrap(hints[field.name])
        if dataclasses.is_dataclass(kind):
            yield from numbers(kind, f"{prefix}{field.name}.")
        elif kind in (int, float):
            yield prefix + field.name, kind
    if prefix == "" and "workers" in hints:
        yield "workers", int


def required(config: Any) -> list[str]:
    hints = get_type_hints(config, include_extras=True)
    line = []
    for field in dataclasses.fields(config):
        kind, _, markers = unwrap(hints[field.name])
        if kind in (Path, Location) and (MustExist in markers or field.default is dataclasses.MISSING):
            line += [] if field.name == "warm_start" else [f"--{field.name}", "/"]
    return line


CASES = [(job, name, kind) for job, config in JOBS.items() for name, kind in numbers(config)]


def test_every_kind_of_number_is_tried() -> None:
    names = {f"{job}.{name}" for job, name, _ in CASES}
    assert {"train.code.dim", "pipeline.train.cpus_per_worker", "preprocess.resolution", "render.rows"} <= names
    assert len(CASES) > 90


@pytest.mark.parametrize(("job", "name", "kind"), CASES)
def test_a_number_without_sense_is_refused_in_one_line(job: str, name: str, kind: type) -> None:
    for text in ("nan", "inf", "-inf", "-1", "1e9", "1e18"):
        last = name.rpartition(".")[2]
        valid = (text == "-1" and last in MINUS_ONE_IS_VALID) or (text == "1e9" and last in A_BILLION_IS_VALID)
        if valid or (text == "1e18" and last == "seed"):
            continue
        with pytest.raises(UserError) as caught:
            parse(job, JOBS[job], argv=[*required(JOBS[job]), f"--{name}={text}"])
        line = str(caught.value)
        assert f"--{name.replace('_', '-')} " in line
        assert "\n" not in line


@pytest.mark.parametrize(("job", "name"), [(job, name) for job, name, _ in CASES if name.rpartition(".")[2] in
                                          MINUS_ONE_IS_VALID | A_BILLION_IS_VALID])  # fmt: skip
def test_a_large_number_with_sense_is_taken(job: str, name: str) -> None:
    last = name.rpartition(".")[2]
    for text, valid in (("-1", last in MINUS_ONE_IS_VALID), ("1e9", last in A_BILLION_IS_VALID)):
        if valid:
            value: Any = parse(job, JOBS[job], argv=[*required(JOBS[job]), f"--{name}={text}"])
            for part in name.split("."):
                value = getattr(value, part)
            assert value == float(text)


@pytest.mark.parametrize("name", [name for name, kind in numbers(TrainConfig) if kind is float])
def test_a_notebook_cannot_pass_what_is_no_number(name: str) -> None:
    *groups, last = name.split(".")
    owner: Any = type(getattr(TrainConfig(), groups[0])) if groups else TrainConfig
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"`{last}`"):
            owner(**{last: value})


@pytest.mark.parametrize(
    ("job", "flags", "line"),
    [
        ("preprocess", ["--resolution", "65536"], "--resolution (=65536) must be at most 4,096"),
        ("train", ["--learning-rate", "inf"], "--learning-rate inf: must be a number, such as 0.1"),
        ("train", ["--cpus-per-worker", "-1"], "--cpus-per-worker (=-1.0) must be above 0, or auto"),
        ("train", ["--code.dim", "1000000"], "--code.dim (=1000000) must be at most 65,536"),
        ("train", ["--workers", "1:1000000"], "--workers (=1:1000000) must be at most 65,536"),
    ],
)
def test_the_line_names_the_flag_its_value_and_the_limit(job: str, flags: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(job, JOBS[job], argv=[*required(JOBS[job]), *flags])
    assert str(caught.value) == line
