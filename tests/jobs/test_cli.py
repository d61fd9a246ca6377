"""Command lines and recipes: types, layers, and one line for each mistake."""

import runpy
import sys
from pathlib import Path

import pytest

from glo_core.common.errors import UserError
from glo_core.common.location import Location
from jobs.cli import main, parse
from pipelines.config import PipelineJob
from pipelines.preprocess.config import PreprocessJob
from pipelines.train.config import TrainJob

ROOT = Path(__file__).resolve().parents[2]
PATHS = ["--dataset", "/d", "--run", "/r"]


def test_the_flags_of_the_readme() -> None:
    flags = ["--dataset", "/d", "--run", "/r", "--workers", "2:4", "--images", "1e6", "--seed", "0", "--device", "auto"]
    job = parse("train", TrainJob, argv=flags)
    assert (job.dataset, job.images, job.device) == (Location("/d"), 1_000_000, "auto")
    assert job.fewest_and_most_workers == (2, 4)
    flags = [
        "--input",
        "/a",
        "/b",
        "--dataset",
        "/d",
        "--resolution",
        "64",
        "--channels",
        "3",
        "--holdout",
        "0.1",
        "--code-shards",
        "32",
    ]
    job = parse("preprocess", PreprocessJob, argv=flags)
    assert (job.input, job.holdout, job.code_shards) == ((Location("/a"), Location("/b")), 0.1, 32)


def test_flags_win_over_the_recipe_and_the_recipe_over_what_was_recorded(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {images: 2e5, seed: 5, code: {dim: 8, init: random}}\npreprocess: {resolution: 32}\n")
    job = parse(
        "train",
        TrainJob,
        argv=[*PATHS, "--recipe", str(recipe), "--code.dim", "12"],
        saved_config=lambda values: {"seed": 9, "batch_size": 64, "code": {"dim": 3, "projection": "ball"}},
    )
    assert (job.images, job.seed, job.batch_size) == (200_000, 5, 64)
    assert (job.code.dim, job.code.init, job.code.projection) == (12, "random", "ball")
    whole = parse("pipeline", PipelineJob, argv=["--input", "/a", "--root", "/o", "--recipe", str(recipe)])
    assert (whole.preprocess.resolution, whole.train.code.dim) == (32, 8)


def test_a_range_and_an_exponent_in_a_recipe_are_what_they_look_like(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {images: 1e3, workers: 1:8, seed: 10}\n")
    job = parse("train", TrainJob, argv=[*PATHS, "--recipe", str(recipe)])
    assert (job.images, job.workers, job.seed) == (1000, "1:8", 10)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(recipe: Path) -> None:
    parse("pipeline", PipelineJob, argv=["--input", "/a", "--root", "/o", "--recipe", str(recipe)])


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--run", "/r"], "--dataset is required"),
        ([*PATHS, "--imagse", "3"], "unrecognized arguments: --imagse 3; --help lists every flag"),
        *(
            ([*PATHS, "--workers", bad], f"`workers` (={bad}) must be a number from 1 on, or a range such as 1:8")
            for bad in ("two", "0", "4:2", "1:", ":2", "1:2:3", "-1")
        ),
        ([*PATHS, "--images", "-1"], "`images` (=-1) must be at least 1, or 0"),
        ([*PATHS, "--device", "tpu"], "device='tpu': input should be 'auto', 'cpu' or 'gpu'"),
        ([*PATHS, "--code.dim", "-2"], "`code.dim` (=-2) must be at least 1, or 0"),
        ([*PATHS, "--recipe", "/no.yaml"], "recipe=/no.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        parse("train", TrainJob, argv=flags)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {imags: 3}", "unknown key 'imags'"),
        ("train: {code: {dims: 3}}", "unknown key 'code.dims'"),
        ("trains: {images: 3}", "unknown section 'trains'"),
        ("- a", "must hold sections"),
        ("train: {", "not valid YAML"),
        ("train: {decoder: {filters: [a]}}", "decoder.filters.0='a': input should be a valid integer"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(tmp_path: Path, text: str, line: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError) as caught:
        parse("train", TrainJob, argv=[*PATHS, "--recipe", str(recipe)])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_ends_the_process_with_one_line_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: TrainJob) -> None:
        raise UserError("disk: full")

    with pytest.raises(SystemExit) as caught:
        main("train", TrainJob, fail, argv=PATHS)
    assert caught.value.code == "train: error: disk: full"


def test_a_relative_path_in_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match="run=r: a submitted job runs in a copy of the working directory"):
        parse("train", TrainJob, argv=["--dataset", "/d", "--run", "r"])


@pytest.mark.parametrize("name", ["preprocess", "train", "fit_prior", "render", "evaluate", "pipeline"])
def test_every_job_runs_as_a_module_and_has_help(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"jobs.{name}", run_name="__main__")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: jobs/{name}.py" in shown
    assert "--recipe FILE" in shown
