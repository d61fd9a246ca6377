"""Our loop against a plain one: codes in host NumPy, copied each step, the loss read each step.

    python -m benchmarks.train_plain_loop [--resolution 64] [--channels 3] [--code-dim 128]

Same decoder, batch, loss and images on both sides. The plain loop is what a short script does: it indexes NumPy arrays,
makes tensors of the rows, converts the images, calls `backward`, takes the loss off the device, steps the
decoder, copies the codes' gradient back, steps and projects the rows in NumPy, all in float32. It runs with PyTorch's
defaults (`plain`); with our setting of the C library's allocator alone, `keep_freed_memory` (`plain_allocator`); with
decoder and images in our memory format and a fused Adam (`plain_layout`); and with all of these
(`plain_layout_allocator`): what is left there is the loop itself. All sides alternate, each time in a process of its
own, since the allocator's setting stays with a process.
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import glo_core as glo
from benchmarks.environment import describe, describe_config
from benchmarks.rounds import Spread, json_line, measure_in_turn, ratio, table
from benchmarks.train_efficiency import loop_side, random_dataset
from glo_core.common.location import Location
from glo_core.common.memory import keep_freed_memory
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig

SIDES = ("ours", "plain", "plain_allocator", "plain_layout", "plain_layout_allocator")


def plain_side(config: ResolvedTrainConfig, pixels: np.ndarray, steps: int, device: str, *, our_layout: bool) -> float:
    """Images/s of the plain loop over `pixels`, uint8 `[n, H, W, C]`."""
    count, side, _, channels = pixels.shape
    decoder = glo.make_decoder(config.decoder, code_dim=config.code.dim, resolution=side, channels=channels).to(device)
    layout = torch.channels_last if our_layout else torch.contiguous_format
    decoder = decoder.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3, fused=our_layout)
    random = np.random.default_rng(0)
    codes = random.normal(size=(count, config.code.dim)).astype(np.float32) / config.code.dim**0.5
    losses: list[float] = []
    for step in range(steps + 3):
        if step == 3:
            since = time.perf_counter()
        rows = random.integers(0, count, config.batch_size)
        images = torch.from_numpy(pixels[rows].transpose(0, 3, 1, 2)).to(device).float() / 127.5 - 1
        z = torch.tensor(codes[rows], device=device, requires_grad=True)
        loss = (decoder(z) - images.contiguous(memory_format=layout)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        assert z.grad is not None
        moved = codes[rows] - 10 * z.grad.cpu().numpy()
        codes[rows] = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1)
    return config.batch_size * steps / (time.perf_counter() - since)


def measured(name: str, config: ResolvedTrainConfig, dataset: str, steps: int, device: str) -> float:
    """Images/s of one side."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    images = glo.Dataset.open(Location(dataset)).images()
    if name == "ours":
        return loop_side(config, images, steps * config.batch_size, device)
    if "allocator" in name:
        keep_freed_memory()
    pixels = images.take(np.arange(len(images.ids))).numpy()
    return plain_side(config, pixels, steps, device, our_layout="layout" in name)


def alone(work: Callable[..., float], *arguments: Any) -> float:
    """What `work` returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    """Time the loop and a plain PyTorch loop in turn, and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [
        ("resolution", 64), ("channels", 3), ("batch-size", 128), ("code-dim", 128), ("steps", 30), ("rounds", 3),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    code = glo.CodeConfig(dim=options.code_dim, init="random", projection="ball")
    config = resolve_defaults(glo.TrainConfig(batch_size=options.batch_size, code=code), 8192, options.resolution)
    dataset_config = ResolvedDatasetConfig(resolution=options.resolution, channels=options.channels)
    print(f"{describe(device)}; {device}\n{describe_config(options)}")
    with tempfile.TemporaryDirectory() as scratch:
        random_dataset(Path(scratch), dataset_config, images=8192)
        arguments = config, scratch, options.steps, device
        sides = {name: functools.partial(alone, measured, name, *arguments) for name in SIDES}
        rates = measure_in_turn(sides, options.rounds)
    ratios = {name.replace("plain", "ratio"): ratio(rates["ours"], rates[name]) for name in SIDES[1:]}
    spreads = ratios | {f"{name}_images_per_s": Spread.of(rate) for name, rate in rates.items()}
    print(table(spreads))
    print(json_line(spreads, rounds=options.rounds))


if __name__ == "__main__":
    main()
