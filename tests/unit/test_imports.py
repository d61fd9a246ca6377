import subprocess
import sys


def test_glo_core_brings_neither_ray_nor_mlflow() -> None:
    code = (
        "import pkgutil, sys, importlib, glo_core\n"
        "for module in pkgutil.iter_modules(glo_core.__path__): importlib.import_module(f'glo_core.{module.name}')\n"
        "print([name for name in ('ray', 'mlflow', 'pydantic', 'pipelines') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_pipelines_bring_mlflow_only_when_a_run_is_tracked() -> None:
    code = "import sys, pipelines.whole; print('mlflow' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
