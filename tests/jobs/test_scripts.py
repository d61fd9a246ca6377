"""Jobs run as scripts, where Python puts `jobs/` first on the path."""

import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT


def test_a_job_run_as_a_script_finds_the_standard_library(tmp_path: Path) -> None:
    for job in sorted((ROOT / "jobs").glob("*.py")):
        assert job.stem not in sys.stdlib_module_names
    command = [sys.executable, str(ROOT / "jobs" / "inspect_dataset.py"), "--dataset", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (
        1,
        f"inspect_dataset: error: {tmp_path}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one",
    )
