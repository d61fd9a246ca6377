"""Images read ahead, on a CPU and into the fake device of a test, whose copies are whole at once."""

import dataclasses
import threading
import time

import numpy as np
import torch

from glo_core.common.arrays import Int64Array
from glo_core.common.runtime import SingleProcess
from glo_core.data.image_cache import DEVICE_SHARE, device_room
from glo_core.data.image_source import TensorImages
from glo_core.data.read_ahead import BUFFERS, ReadAhead
from glo_core.decoder.build import make_decoder
from glo_core.decoder.cost import num_parameters
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import TrainConfig
from glo_core.training.device_memory import training_bytes


class Counting(TensorImages):
    """Images that remember who took which rows."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__(images, code_shards=1)
        self.taken: list[tuple[str, list[int]]] = []

    def take(self, rows: Int64Array) -> torch.Tensor:
        self.taken.append((threading.current_thread().name, rows.tolist()))
        return super().take(rows)


def source() -> Counting:
    pixels = np.zeros((40, 8, 8, 1), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(40)
    return Counting(torch.from_numpy(pixels))


def test_each_batch_has_its_images_though_buffers_are_used_again() -> None:
    images = source()
    steps = [np.random.default_rng(step).permutation(40)[:5] for step in range(20)]
    for rows, batch in zip(steps, ReadAhead(images, torch.device("cpu")).batches(steps), strict=True):
        time.sleep(0.001)  # The thread is ahead by then.
        assert batch[:, 0, 0, 0].tolist() == rows.tolist()
    assert {name.split("_")[0] for name, _ in images.taken} == {"images"}
    assert [rows for _, rows in images.taken] == [rows.tolist() for rows in steps]


def test_no_more_is_read_than_there_are_buffers() -> None:
    images = source()
    batches = ReadAhead(images, torch.device("cpu")).batches(np.full(5, step) for step in range(20))
    next(batches)
    time.sleep(0.2)
    assert len(images.taken) == BUFFERS
    batches.close()  # type: ignore[attr-defined]


def test_an_error_of_the_thread_reaches_the_step() -> None:
    batches = ReadAhead(source(), torch.device("cpu")).batches([np.array([1]), np.array([99])])
    assert next(batches)[0, 0, 0, 0] == 1
    try:
        next(batches)
    except IndexError:
        return
    raise AssertionError


def test_what_training_needs_grows_with_rows_and_batch_and_is_shared_by_ranks() -> None:
    runtime, images = SingleProcess(), source()
    recipe = resolve_defaults(TrainConfig(batch_size=16), 40, 8, code_shards=1)
    few = training_bytes(recipe, images, runtime)
    parameters = num_parameters(make_decoder(recipe.decoder, code_dim=16, resolution=8, channels=1))
    assert few - (1 << 30) > 4 * (5 * parameters + 3 * 40 * 16)
    larger = training_bytes(dataclasses.replace(recipe, batch_size=32), images, runtime)
    # Four layers of a step are kept for 16 images more: a few thousand values each.
    assert 16 * 4 * 1000 < larger - few < 16 * 4 * 100_000
    assert training_bytes(dataclasses.replace(recipe, window=4), images, runtime) == few - 4 * 3 * 40 * 16
    runtime.world_size = 2
    assert training_bytes(recipe, images, runtime) < few


def test_images_leave_the_device_what_training_needs() -> None:
    assert device_room(10 << 30, 2 << 30) == int(DEVICE_SHARE * (8 << 30))
    assert device_room(1 << 30, 2 << 30) == 0
