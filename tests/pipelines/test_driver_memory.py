"""The driver of the stages after training holds nothing that grows with the images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.large_run import ROWS, make_large_run
from tests.helpers.paths import ROOT
from tests.helpers.processes import Head

BOUND = 16 << 20
"""Bytes: the codes of a million rows take 32 MB here, their ids 8 MB, their images 64 MB"""


@pytest.mark.slow
def test_a_million_rows_cost_the_driver_no_more_than_a_thousand(head: Head, tmp_path: Path) -> None:
    make_large_run(tmp_path / "small", 1000)
    make_large_run(tmp_path / "large", ROWS)
    command = [sys.executable, "-m", "tests.helpers.large_run", str(tmp_path)]
    environment = os.environ | {"RAY_ADDRESS": head.address}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    growth = int(done.stdout.rsplit("growth ", 1)[1])
    assert growth < BOUND, f"the peak grew by {growth / 2**20:.1f} MiB"
