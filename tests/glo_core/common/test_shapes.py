import subprocess
import sys

import jaxtyping
import numpy as np
import pytest
import torch

from glo_core.codes.ridge import apply_ridge
from glo_core.common.counter_rng import normal
from glo_core.data.epoch_order import images_before_step
from glo_core.losses.pixel import mse
from glo_core.losses.pixel_ranges import to_target
from tests.helpers.paths import ROOT

IMAGES = torch.zeros(2, 3, 8, 8)


def test_a_call_with_the_shapes_of_the_signature_passes() -> None:
    assert mse(IMAGES, IMAGES).shape == (2,)
    assert apply_ridge(torch.ones(5, 4), torch.ones(5, 4, dtype=torch.float64)).shape == (5, 4)


def test_a_tensor_with_an_axis_too_few_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="prediction"):
        mse(IMAGES[0], IMAGES[0])


def test_tensors_that_name_the_same_axis_must_agree_on_its_length() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="target"):
        mse(IMAGES, IMAGES[:1])
    with pytest.raises(jaxtyping.TypeCheckError, match="weights"):
        apply_ridge(torch.ones(5, 4), torch.ones(4, 4))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="images"):
        to_target(torch.zeros(2, 8, 8, 3), torch.float32)


def test_arrays_are_checked_too() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="ids"):
        normal(0, np.zeros((2, 2), np.int64), dim=3)
    with pytest.raises(jaxtyping.TypeCheckError, match="lane_sizes"):
        images_before_step(np.zeros(2), steps=3)  # type: ignore[arg-type]


def test_the_core_needs_no_jaxtyping() -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('jaxtyping', 'beartype'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import glo_core\n"
        "modules = [m.name for m in pkgutil.walk_packages(glo_core.__path__, 'glo_core.')]\n"
        "for name in modules: importlib.import_module(name)\n"
        "from glo_core.common.shapes import Float, Tensor\n"
        "print(len(modules) > 40, Float[Tensor, 'b dim'] is Tensor, 'jaxtyping' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (result.stdout.strip(), result.stderr) == ("True True False", "")


def test_types_of_arrays_bring_no_pytorch() -> None:
    code = "import sys, glo_core.common.counter_rng, glo_core.data.lanes; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "False"
