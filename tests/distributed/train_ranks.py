"""A training by W processes under torch.distributed: `train_ranks.py W RUN TARGET [END]`. Losses go to RUN/losses.json.

Every report is a line: images seen, loss, and bytes that rank 0 gave to the other ranks until then. At END images seen
rank 0 ends without a word, as if it were killed.

The ranks are forked, as torchrun would start them, but after the imports, which cost more than the training.
"""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import glo_core as glo
from glo_core.common.runtime import Metrics

CONFIG = glo.TrainConfig(
    batch_size=16,
    precision="float64",
    code=glo.CodeConfig(dim=4),
    decoder=glo.DecoderConfig(kind="seed", filters=(16, 8), kernel_size=5),
)


def images() -> glo.TensorImages:
    """77 images under ids with holes, so that lanes differ in size and steps hold padding."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (77, 4, 4, 1), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    ids = np.sort(generator.choice(200, 77, replace=False)).astype(np.int64)
    return glo.TensorImages(torch.from_numpy(pixels), ids, code_shards=8)


class Counting(glo.TorchDistributed):
    sent = 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sent += tensor.numel() * tensor.element_size()
        return super().all_reduce_sum(tensor)

    def start_all_reduce_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        self.sent += tensor.numel() * tensor.element_size()
        return super().start_all_reduce_sum(tensor)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sent += tensor.numel() * tensor.element_size()
        return super().broadcast(tensor)

    def all_gather(self, value: Any) -> list[Any]:
        self.sent += len(pickle.dumps(value))
        return super().all_gather(value)


def rank_main(rank: int, world_size: int, run: Path, target: int, end: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{run}/rendezvous", rank=rank, world_size=world_size)
    losses: list[tuple[int, float, int]] = []

    def on_report(seen: int, metrics: Metrics) -> None:
        if "loss" in metrics:
            losses.append((seen, metrics["loss"], runtime.sent))
        if seen >= end:
            os._exit(9)

    runtime = Counting(on_report=on_report)
    # Two ranks also write by the clock, each time that they ask each other.
    minutes = 1e-9 if world_size == 2 else 10
    intervals = glo.Intervals(report=1, checkpoint=600, checkpoint_minutes=minutes)
    glo.train_phase(CONFIG, images(), glo.Phase(target=target), runtime=runtime, run=run, intervals=intervals)
    if rank == 0:
        (run / "losses.json").write_text(json.dumps(losses))
    dist.barrier()  # Ranks leave together: one that is left alone may abort when it exits.
    dist.destroy_process_group()


if __name__ == "__main__":
    world, directory, until = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    (directory / "rendezvous").unlink(missing_ok=True)
    children = []
    for number in range(world):
        child = os.fork()
        if child == 0:
            rank_main(number, world, directory, until, int(sys.argv[4]) if len(sys.argv) > 4 else 10**9)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
