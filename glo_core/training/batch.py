"""What a step is given: its rows, uploaded for many steps at once, and its images.

rows and validity of 256 steps (host) --one upload--> device; a step takes its slice, and nothing waits
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glo_core.common.arrays import Int64Array
from glo_core.common.shapes import Bool, Float, Int, Tensor, UInt8
from glo_core.data.epoch_order import LaneEpoch


class StepRows(NamedTuple):
    """This rank's rows of one step, padding included. A row stands for itself once; padding repeats rows."""

    on_host: Int64Array
    """Rows of the rank's code table, int64 `[b]`"""
    valid: npt.NDArray[np.bool_]
    """False for padding, bool `[b]`, in host memory"""
    on_device: Int[Tensor, " b"]
    """The rows again, int64 `[b]`"""
    mask: Float[Tensor, " b"]
    """1 for images and 0 for padding, in the training's dtype"""
    source: Int[Tensor, " b"] | None
    """The place in the batch whose gradient moves the row: its own, or that of the image which padding repeats. None
    in a step without padding"""
    changed: Bool[Tensor, "b 1"] | None
    """Whether the row is moved: False for padding that repeats no image of the step. None in a step without padding"""


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: UInt8[Tensor, "b height width channels"]
    """uint8 `[b, H, W, C]`, on the device or in host memory"""
    rows: StepRows


def upload(steps: LaneEpoch, device: torch.device, dtype: torch.dtype) -> Iterator[StepRows]:
    """The rows of each of some steps, copied to `device` at once.

    Padding and the image that it repeats name one row of the table. Both then write the same values there, so that a
    step needs neither the number of its valid rows nor an order of its writes: its shapes are the same in every step.

    Args:
        steps: rows and validity, `[steps, b]`.
        device: of the code table.
        dtype: of the mask.
    """
    source, changed = _sources(steps)
    pinned = device.type == "cuda"

    def to_device(array: npt.NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)

    rows, places, moved = to_device(steps.rows), to_device(source), to_device(changed)
    mask = to_device(steps.valid).to(dtype)
    full: list[bool] = np.all(steps.valid, axis=1).tolist()  # Axis [step].
    for step in range(len(steps.rows)):
        of_padding = (None, None) if full[step] else (places[step], moved[step, :, None])
        yield StepRows(steps.rows[step], steps.valid[step], rows[step], mask[step], *of_padding)


def _sources(steps: LaneEpoch) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """`source` and `changed` of each place of each step, `[steps, b]`."""
    rows, valid = steps
    source = np.broadcast_to(np.arange(rows.shape[1]), rows.shape).copy()
    padding = np.flatnonzero(~valid)
    if not len(padding):
        return source, valid.copy()
    # One number for each row of each step. Axis [image of these steps], sorted.
    keys = (rows + np.arange(len(rows))[:, None] * (int(rows.max()) + 1)).ravel()
    images = np.flatnonzero(valid)
    images = images[np.argsort(keys[images])]
    # Axis [padding]: the image of the same step and row, where there is one.
    places = np.searchsorted(keys[images], keys[padding])
    places = np.minimum(places, max(len(images) - 1, 0))
    repeats = keys[images[places]] == keys[padding] if len(images) else np.zeros(len(padding), np.bool_)
    changed = valid.copy()
    changed.ravel()[padding] = repeats
    if len(images):
        source.ravel()[padding[repeats]] = images[places[repeats]] % rows.shape[1]
    return source, changed
