"""Command lines and recipes: types, layers, help, and one line for each mistake."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glo_core.common.errors import ConfigError, UserError, settings_of_stage
from glo_core.common.location import Location
from jobs.cli import main, parse
from pipelines.config import PipelineJob
from pipelines.preprocess.config import PreprocessJob
from pipelines.train.config import TrainJob
from tests.helpers.paths import ROOT

Recipe = Callable[[str], str]
"""Writes a recipe; returns the flag that names it"""
JOBS = ("preprocess", "train", "fit_prior", "render", "evaluate", "pipeline", "inspect_dataset")
TRAIN = ["--dataset", "/", "--run", "/r"]
PIPELINE = ["--input", "/", "--root", "/o"]


def train(*flags: str) -> TrainJob:
    return parse("train", TrainJob, argv=[*TRAIN, *flags])


def pipeline(*flags: str) -> PipelineJob:
    return parse("pipeline", PipelineJob, argv=[*PIPELINE, *flags])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "r.yaml"

    def write(text: str) -> str:
        path.write_text(text)
        return f"--recipe={path}"

    return write


def test_a_flag_is_read_by_its_type_and_not_by_its_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("7e12345").mkdir()
    job = parse("train", TrainJob, argv=["--run", "1e6", "--dataset", "7e12345", "--experiment", "1e-4"])
    assert job.run == tmp_path / "1e6"
    assert (job.dataset, job.experiment) == (Location(tmp_path / "7e12345"), "1e-4")
    Path("12e3").mkdir()
    other = parse("preprocess", PreprocessJob, argv=["--input", "12e3", "12e3", "--dataset", "d,[1]"])
    assert other.input == (Location(tmp_path / "12e3"),) * 2
    assert other.dataset == Location(tmp_path / "d,[1]")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 1_000_000), ("1.5e6", 1_500_000), ("1_000_000", 1_000_000), ("7", 7)],
)
def test_a_whole_number(text: str, number: int) -> None:
    assert train("--images", text).images == number


def test_the_same_texts_in_a_recipe(recipe: Recipe) -> None:
    text = "train: {workers: 1:8, experiment: 1e-4, images: 1e3, seed: 010, beta1: 5e-1}"
    job = train(recipe(text))
    assert (job.workers, job.experiment, job.images) == ("1:8", "1e-4", 1000)
    assert (job.seed, job.beta1) == (10, 0.5)
    assert train(recipe("train: {experiment: 2026-01-01}")).experiment == "2026-01-01"
    assert train(recipe("train: {experiment: on}")).experiment == "on"
    assert train(recipe("train: {scratch: ~/s, code: {dim: auto}}")).scratch == Path.home() / "s"


def test_forms_of_a_flag() -> None:
    job = pipeline("--fit_prior.kinds", "full", "diagonal")
    assert job.fit_prior.kinds == ("full", "diagonal")
    job = pipeline("--preprocess.srgb", "false", "--preprocess.allow-truncated", "--train.seed=-3")
    assert (job.preprocess.srgb, job.preprocess.allow_truncated, job.train.seed) == (
        False,
        True,
        -3,
    )
    assert train("--seed", "-3", "--seed", "4", "--experiment=-x").seed == 4
    with pytest.raises(ConfigError, match=r"--fit-prior\.kinds is given 2 times; give it once, with all its values"):
        pipeline("--fit_prior.kinds", "unit", "--fit-prior.kinds", "full", "diagonal")
    assert train("--run=~/x").run == Path.home() / "x"
    assert parse("train", TrainJob, argv=["--dataset", "s3://b/~x", "--run", "/r"]).dataset.remote


def test_none_is_written_as_a_word(recipe: Recipe) -> None:
    job = train("--batch-size", "auto", "--window", "all", "--clip-norm", "off")
    assert job.batch_size is job.window is job.clip_norm is None
    assert train("--ema-half-life=off").ema_half_life is None
    assert train("--decoder.filters", "auto").decoder.filters is None
    assert train("--decoder.filters", "64", "32").decoder.filters == (64, 32)
    assert train(recipe("train: {ema_half_life: off, decoder: {filters: auto}}")).ema_half_life is None


def test_a_recipe_runs_no_code(recipe: Recipe, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    job = train(recipe(f"train: {{experiment: !!python/object/apply:pathlib.Path.touch [{mark}]}}"))
    assert job.experiment == str(mark)
    assert not mark.exists()


def test_flags_win_over_the_recipe_and_the_recipe_over_the_saved_config(recipe: Recipe) -> None:
    text = "train: {images: 2e5, seed: 5, code: {dim: 8, init: random}}\npreprocess: {resolution: 32}"
    saved_with: dict[str, Any] = {}

    def saved_config(values: dict[str, Any]) -> dict[str, Any]:
        saved_with.update(values)
        code = {"dim": None, "projection": "ball"}
        decoder = {"filters": [64, 32]}
        return {"seed": 9, "batch_size": 64, "code": code, "decoder": decoder, "clip_norm": None}

    flags = [*TRAIN, recipe(text), "--code.dim", "12"]
    job = parse("train", TrainJob, argv=flags, saved_config=saved_config)
    assert saved_with["run"] == Path("/r")
    assert (job.images, job.seed, job.batch_size) == (200_000, 5, 64)
    assert (job.code.dim, job.code.init, job.code.projection) == (12, "random", "ball")
    assert job.decoder.filters == (64, 32)
    both = pipeline(recipe(text))
    assert (both.preprocess.resolution, both.train.code.dim) == (32, 8)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    assert pipeline("--recipe", str(path)).train.images


def test_sections_of_a_recipe(recipe: Recipe) -> None:
    empty = "train:\nrender:\npreprocess: {}\nfit-prior: {kinds: [full]}\nevaluate: {held-out: 3}"
    job = pipeline(recipe(empty))
    assert (job.fit_prior.kinds, job.evaluate.held_out) == (("full",), 3)
    assert train(recipe("train: {code:, seed: 3}")).seed == 3
    assert train(recipe("")).seed == 0


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--images", "1.5"], "--images 1.5: must be a whole number, such as 16, or auto"),
        (["--batch-size", "abc"], "--batch-size abc: must be a whole number, such as 16, or auto"),
        (["--images", "1e99999999"], "--images 1e99999999: must be a whole number"),
        (["--beta1", "x"], "--beta1 x: must be a number"),
        (["--device", "tpu"], "--device tpu: must be auto, or cpu, or gpu"),
        (["--decoder.modulation", "maybe"], "--decoder.modulation maybe: must be true or false"),
        (["--images"], "--images takes one value, not 0"),
        (["--images", "1", "2"], "--images takes one value, not 2"),
        (["--batch-size", "0"], "--batch-size (=0) must be at least 1, or auto"),
        (["--code.dim", "0"], "--code.dim (=0) must be at least 1, or auto"),
        (["--imagse", "3"], "unknown flag --imagse; did you mean --images?"),
        (["--image=3"], "unknown flag --image; did you mean --images?"),
        (["--kernel-size", "3"], "unknown flag --kernel-size; did you mean --decoder.kernel-size?"),
        (["--warm-start", "/no/such"], "--warm-start /no/such: no such file or folder"),
        (["--run", ""], "--run : must be a path"),
        (["--recipe", "/no.yaml"], "--recipe /no.yaml: no such file"),
        *(
            (["--workers", bad], f"--workers (={bad}) must be a number from 1 on, or a range such as 1:8")
            for bad in ("two", "0", "4:2", "1:", ":2", "1:2:3", "-1")
        ),
        (["--images", "-1"], "--images (=-1) must be at least 1, or auto"),
        (["--learning-rate", "inf"], "--learning-rate inf: must be a number, such as 0.1"),
        (["--code.learning-rate", "1e400"], "--code.learning-rate 1e400: must be a number, such as 0.1"),
        (["--loss", "1e400 mse"], "--loss (=1e400 mse) must be a sum of"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(flags: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        train(*flags)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {imags: 3}", "unknown key imags; did you mean images?"),
        ("train: {code: {dims: 3}}", "unknown key code.dims; did you mean code.dim?"),
        ("train: {code: 5}", "unknown key code;"),
        ("trains: {images: 3}", "unknown section trains; did you mean train?"),
        ("train: 5", "must hold sections"),
        ("- a", "must hold sections"),
        ("train: {", "not valid YAML"),
        (
            "train: {seed: 1, seed: 2}",
            "not valid YAML: seed stands twice in the mapping from line 1",
        ),
        ("train: {decoder: {filters: [a]}}", "decoder.filters a: must be a whole number"),
        ("train: {images: }", "images has no value; give one, or leave the key out"),
        ("train: {scratch: ~}", "scratch has no value; give one, or leave the key out"),
        ("train: {tracking_uri: null}", "tracking_uri has no value; give one, or leave the key out"),
        ("train: {code: {batch-size: 3, batch_size: 4}}", "not valid YAML: batch_size stands twice"),
        ("train: {code: {dim: 0}}", "code.dim (=0) must be at least 1, or auto"),
        ("train: {seed: [1, 2]}", "seed takes one value, not 2"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_file(recipe: Recipe, text: str, line: str) -> None:
    flag = recipe(text)
    with pytest.raises(UserError) as caught:
        train(flag)
    assert str(caught.value).startswith(f"{flag.removeprefix('--recipe=')}: {line}")
    assert "\n" not in str(caught.value)


def test_the_pipeline_names_its_own_flags() -> None:
    with pytest.raises(UserError, match=r"^--preprocess.holdout \(=2.0\) must be"):
        pipeline("--preprocess.holdout", "2")
    with pytest.raises(UserError, match=r"did you mean --preprocess.holdout\?"):
        pipeline("--holdout", "2")
    with pytest.raises(UserError, match=r"^--root is required"):
        parse("pipeline", PipelineJob, argv=["--input", "/"])


def test_an_error_of_a_stage_in_the_pipeline_names_the_flags_of_the_pipeline() -> None:
    def run(_: PipelineJob) -> None:
        with settings_of_stage("train", dataset="root", run="root"):
            raise UserError("`window` (=5) must be at least 8 in `run`; see `nvidia smi`")

    with pytest.raises(SystemExit) as caught:
        main("pipeline", PipelineJob, run, argv=PIPELINE)
    line = "--train.window (=5) must be at least 8 in --root; see `nvidia smi`"
    assert caught.value.code == f"pipeline: error: {line}"


def test_a_relative_path_in_a_submitted_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"^--run r: a submitted job runs in a copy of the working"):
        train("--run", "r")


def job(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, cwd=ROOT)
    return done, time.perf_counter() - started


@pytest.mark.parametrize("name", JOBS)
def test_help_is_quick_short_and_plain(name: str) -> None:
    shown, seconds = job(f"jobs.{name}", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert seconds < 2
    assert max(map(len, shown.stdout.splitlines())) <= 102
    assert "\x1b" not in shown.stdout
    assert f"Example: python jobs/{name}.py" in shown.stdout
    assert "(required)" in shown.stdout
    assert "--help-all" in shown.stdout
    assert shown.stdout.count("│ --") < 20


@pytest.mark.parametrize("name", ["train", "pipeline"])
def test_all_help_shows_every_flag_in_groups(name: str) -> None:
    shown = job(f"jobs.{name}", "--help-all")[0].stdout
    assert shown.count("│ --") >= 50
    assert "The latent codes and their optimizer" in shown


def test_a_mistake_ends_the_process_quickly_with_one_line() -> None:
    done, seconds = job("jobs.train", "--dataset", "/no/such", "--run", "/r")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "train: error: --dataset /no/such: no such file or folder\n"
    assert seconds < 2


def test_no_help_imports_a_large_library() -> None:
    """`--help-all` of every job, in one process."""
    large = {"torch", "ray", "mlflow", "pyarrow", "numpy"}
    code = f"""
import runpy, sys
sys.argv = ["job", "--help-all"]
for name in {JOBS}:
    try:
        runpy.run_path(f"jobs/{{name}}.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
print({large} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("\nset()\n"), done.stderr


@pytest.mark.parametrize(
    ("job", "flag"), [("pipeline", "--input"), ("pipeline", "--root"), ("train", "--dataset"), ("train", "--run")]
)
def test_a_flag_that_names_a_place_takes_no_secret(job: str, flag: str, recipe: Recipe) -> None:
    config: Any = {"pipeline": PipelineJob, "train": TrainJob}[job]
    for argv in ([flag, "s3://KEY:HUNTER2@bucket/x"], [f"{flag}=s3://b/x?secret_key=HUNTER2"]):
        with pytest.raises(ConfigError, match=rf"^{flag}: s3://\*\*\*: this URI holds a key") as caught:
            parse(job, config, argv=argv)
        assert "HUNTER2" not in str(caught.value)
    path = recipe("preprocess: {dataset: 's3://KEY:HUNTER2@bucket/x'}")
    with pytest.raises(ConfigError, match=r"r\.yaml: dataset: s3://\*\*\*: this URI holds a key"):
        parse("preprocess", PreprocessJob, argv=[path])


def test_a_run_is_a_local_path_and_no_uri() -> None:
    with pytest.raises(ConfigError, match=r"^--run: s3://bucket/run: is a URI, where a local path is needed"):
        train("--run", "s3://bucket/run")
