"""Every example runs: each in a process of its own, as a reader would start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.paths import ROOT

EXAMPLES = ROOT / "examples"


def run_python(*arguments: object, folder: Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_has_a_test() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names == {"train_on_a_tensor.py", "load_a_run.py", "train_on_a_tensor.ipynb"}


def test_a_run_is_trained_and_opened_again(tmp_path: Path) -> None:
    small = ("--count", 40, "--side", 8, "--images-seen", 400)
    printed = run_python(EXAMPLES / "train_on_a_tensor.py", *small, "--run", "run", folder=tmp_path)
    assert "PCA of the same dimension" in printed
    sheet = np.asarray(Image.open(tmp_path / "shapes.png"))
    assert sheet.shape == (4 * 10 - 2, 8 * 10 - 2, 3)
    assert len(np.unique(sheet)) > 10

    again = run_python(EXAMPLES / "train_on_a_tensor.py", *small, "--run", "run", "--output", "b.png", folder=tmp_path)
    assert again == printed.replace("shapes.png", "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), sheet)

    printed = run_python(EXAMPLES / "load_a_run.py", "run", "--columns", 5, folder=tmp_path)
    assert "40 codes of 16 dimensions" in printed
    assert np.asarray(Image.open(tmp_path / "run.png")).shape == (4 * 10 - 2, 5 * 10 - 2, 3)


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    notebook = json.loads((EXAMPLES / "train_on_a_tensor.ipynb").read_text())
    lines: list[str] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines += ["".join(cell["source"])]
            assert cell["outputs"] or "image_grid" not in lines[-1]
        if "parameters" in cell["metadata"].get("tags", []):
            lines += ["COUNT, SIDE, IMAGES_SEEN = 30, 8, 200"]
    (tmp_path / "cells.py").write_text("\n".join([*lines, "assert rows[0].shape == (8, SIDE, SIDE, 3)"]))
    assert "'psnr'" in run_python("cells.py", folder=tmp_path)
