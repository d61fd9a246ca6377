"""Places where people run jobs: a tiny job in each single place, and a tiny pipeline in all of them together, are slow.

Namespaces make what needs them; where the machine does not allow them, the reason is shown.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from glo_core.data.dataset import Dataset
from tests.helpers.paths import ROOT
from tests.helpers.write_images import write_images

IMAGES = 12
UNSET = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "PYTHONPATH",
         "RAY_ENABLE_UV_RUN_RUNTIME_ENV")  # fmt: skip
"""Variables that tests set, and users do not"""


def require(*command: str) -> None:
    """Skip the test, with the reason, where `command` does not succeed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not allowed here: {' '.join(command)}: {done.stderr.strip()}")


def run(
    job: str,
    *flags: object,
    env: dict[str, str | None] | None = None,
    before: Sequence[str] = (),
    python: Path | str = sys.executable,
    timeout: int = 200,
) -> subprocess.CompletedProcess[str]:
    """`python jobs/<job>.py ...` as a user starts it, after the words `before`; a variable of None is unset."""
    variables: dict[str, str | None] = dict(os.environ) | dict.fromkeys(UNSET) | (env or {})
    environment = {name: value for name, value in variables.items() if value is not None}
    command = [*before, str(python), str(ROOT / "jobs" / f"{job}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def preprocess(place: Path, images: Path, **options: object) -> None:
    """Preprocess `images` into a dataset in `place`, and look at it."""
    done = run("preprocess", "--input", images, "--dataset", place / "dataset", "--resolution", 16, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert Dataset.open(place / "dataset").num_train == IMAGES
    assert "Traceback" not in done.stderr


def pipeline(root: Path, images: Path, **options: object) -> None:
    """Run all stages on `images`, and look at what the last one leaves."""
    done = run(
        "pipeline", "--input", images, "--root", root, "--preprocess.resolution", 16, "--train.images", 200,
        "--train.code.dim", 4, "--evaluate.steps", 5, timeout=280, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (root / "metrics.json").exists()
    for folder in ("prior", "grids", "evaluation"):
        assert list((root / "run" / folder).glob("*/done.json")), folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    write_images(folder, IMAGES, seed=1)
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_name(f"ä{path.name}"))
    return folder


def long_directory(tmp_path: Path) -> str:
    """Too long for a socket's path (107 bytes)."""
    path = tmp_path / ("x" * 60) / ("y" * 60)
    path.mkdir(parents=True)
    return str(path)


NO_NAMES: dict[str, str | None] = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROXY = "http://127.0.0.1:9"
PROXIES: dict[str, str | None] = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY)
SHARED_MEMORY = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@pytest.mark.slow
def test_all_at_once(tmp_path: Path, images: Path) -> None:
    """A long TMPDIR, no HOME, an ASCII locale, proxies, 64 MB of /dev/shm, read-only inputs, a user without a name."""
    require("unshare", "--user", "--map-user=12345", "--map-group=12345", "true")
    require("unshare", "--mount", "sh", "-c", SHARED_MEMORY, "sh", "true")
    before = [
        "unshare", "--mount", "sh", "-c", SHARED_MEMORY, "sh", "sh", "-c", READ_ONLY, str(images),
        "unshare", "--user", "--map-user=12345", "--map-group=12345",
    ]  # fmt: skip
    env = {"TMPDIR": long_directory(tmp_path), "HOME": None, "USER": None, "LOGNAME": None, **NO_NAMES, **PROXIES}
    pipeline(tmp_path / "out put", images, env=env, before=before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no HOME", "ASCII", "proxies", "long TMPDIR"])
def test_an_environment(name: str, tmp_path: Path, images: Path) -> None:
    env = {
        "no HOME": {"HOME": None},
        "ASCII": NO_NAMES,
        "proxies": PROXIES,
        "long TMPDIR": {"TMPDIR": long_directory(tmp_path)},
    }[name]
    preprocess(tmp_path, images, env=env)


@pytest.mark.slow
def test_a_user_without_a_name(tmp_path: Path, images: Path) -> None:
    before = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    require(*before, "true")
    preprocess(tmp_path, images, before=before)


@pytest.mark.slow
def test_little_shared_memory(tmp_path: Path, images: Path) -> None:
    before = ["unshare", "--mount", "sh", "-c", SHARED_MEMORY, "sh"]
    require(*before, "true")
    preprocess(tmp_path, images, before=before)


@pytest.mark.slow
def test_inputs_that_are_read_only(tmp_path: Path, images: Path) -> None:
    before = ["unshare", "--mount", "sh", "-c", READ_ONLY, str(images)]
    require(*before, "true")
    preprocess(tmp_path, images, before=before)


def environment_with_odd_path(folder: Path) -> Path:
    """An interpreter of a virtual environment whose path a shell would not take for one word."""
    place = folder / "my code (new) & $more"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / ".venv"], check=True)
    site = next((place / ".venv" / "lib").glob("python*")) / "site-packages"
    paths = [path for path in sys.path if path.endswith("site-packages")]
    lines = [str(ROOT), *(f"import site; site.addsitedir({path!r})" for path in paths)]
    (site / "all.pth").write_text("\n".join(lines) + "\n")
    return place / ".venv" / "bin" / "python"


WORKER = """
from pipelines.common.ray_session import ray_session
import ray
with ray_session():
    # As Ray Train does: variables of its own.
    task = ray.remote(lambda: __import__("os").environ["OF_A_WORKER"])
    print(ray.get(task.options(runtime_env={"env_vars": {"OF_A_WORKER": "runs"}}).remote(), timeout=100))
"""


@pytest.mark.slow
def test_workers_start_where_the_path_of_the_environment_has_a_space(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    python = environment_with_odd_path(tmp_path)
    done = subprocess.run(
        [python, "-c", WORKER], capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT
    )
    assert done.stdout == "runs\n", done.stderr


@pytest.mark.slow
def test_the_pipeline_where_the_path_of_the_environment_has_a_space(tmp_path: Path, images: Path) -> None:
    pipeline(tmp_path / "out put", images, python=environment_with_odd_path(tmp_path))


def test_make_demo_quotes_its_folders() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "demo", "DEMO=my demo"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert '-m jobs.demo_digits "my demo/digits"' in done.stdout
    assert '--input "my demo/digits" --root "my demo"' in done.stdout


def test_make_says_at_once_that_the_environment_itself_must_be_one_word() -> None:
    # Under `make test` this is a make within a make, which would say so.
    command = ["make", "--no-print-directory", "--dry-run", "demo", "VENV=my env"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'VENV is "my env", and make takes no path with a space' in done.stderr


def test_a_deleted_working_directory_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = ["sh", "-c", f'cd "{gone}" && rmdir "{gone}" && exec "$@"', "sh"]
    done = run("train", "--dataset", "/", "--run", "r", before=before)
    assert done.returncode == 1
    assert done.stderr == (
        "train: error: the working directory was deleted; change to another one, such as your home (cd)\n"
    )


def test_under_uv_run_workers_start_by_the_same_interpreter() -> None:
    code = "import pipelines, ray; print(ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout == "False\n", done.stderr
