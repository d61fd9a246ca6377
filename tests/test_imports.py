import subprocess
import sys
from pathlib import Path


def test_glo_core_brings_neither_ray_nor_mlflow() -> None:
    code = (
        "import pkgutil, sys, importlib, glo_core\n"
        "for module in pkgutil.iter_modules(glo_core.__path__): importlib.import_module(f'glo_core.{module.name}')\n"
        "print([name for name in ('ray', 'mlflow', 'pydantic', 'pipelines') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_pipelines_bring_mlflow_only_when_a_run_is_tracked() -> None:
    code = "import sys, pipelines.pipeline; print('mlflow' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_a_task_that_decodes_starts_without_pytorch() -> None:
    code = "import sys, pipelines.preprocess.job, pipelines.inspect_dataset; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_a_job_run_as_a_script_finds_the_standard_library(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    for job in sorted((root / "jobs").glob("*.py")):
        assert job.stem not in sys.stdlib_module_names
    command = [sys.executable, str(root / "jobs" / "inspect_dataset.py"), "--dataset", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        f"inspect_dataset: error: {tmp_path}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one",
    )
