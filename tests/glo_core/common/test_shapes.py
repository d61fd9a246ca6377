"""Shapes in signatures are checked in tests, and are for readers alone where jaxtyping is not installed."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from glo_core.losses.pixel import mse
from tests.helpers.paths import ROOT


def test_a_wrong_shape_is_refused_in_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        mse(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))
    with pytest.raises(jaxtyping.TypeCheckError):
        mse(torch.zeros(2, 4, 4), torch.zeros(2, 4, 4))


def test_the_core_needs_neither_jaxtyping_nor_what_only_files_need() -> None:
    code = (
        "import sys\n"
        "for name in ('jaxtyping', 'beartype', 'blake3', 'safetensors', 'tqdm'): sys.modules[name] = None\n"
        "import torch, glo_core as glo\n"
        "images = torch.randint(0, 256, (40, 8, 8, 1), dtype=torch.uint8)\n"
        "print(glo.train(images, images_seen=80).model.sample(3).shape)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown == "(3, 8, 8, 1)\n"
