"""Codes of appended images by W ranks: `growth_ranks.py W RUN [STOP]`; RUN holds a finished training of fewer images.

Rank 1 asks to stop at its meeting number STOP, and every rank then ends there.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import glo_core as glo
from glo_core.training import growth
from tests.distributed.train_ranks import CONFIG, images

OLD = 40
"""Images of the first phase"""


def first_images() -> glo.TensorImages:
    """The first of the images of `train_ranks`, under their ids."""
    everything = images()
    return glo.TensorImages(everything._all[:OLD], everything._all_ids[:OLD], code_shards=everything.code_shards)


class Stopping(glo.TorchDistributed):
    """Rank 1, or the only one, asks to stop at its n-th answer and later."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left <= 0 and self.rank == self.world_size - 1


def rank_main(rank: int, world_size: int, run: Path, after: int) -> None:
    torch.set_num_threads(1)
    growth._CHUNK = 4  # Ranks have different numbers of chunks.
    dist.init_process_group("gloo", init_method=f"file://{run}/rendezvous", rank=rank, world_size=world_size)
    result = glo.train_phase(
        CONFIG, images(), glo.Phase(number=1, start=200, target=400), runtime=Stopping(after), run=run
    )
    outcome = [result.finished, result.position.images_seen]
    (run / f"rank-{rank}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    world, directory = int(sys.argv[1]), Path(sys.argv[2])
    (directory / "rendezvous").unlink(missing_ok=True)
    children = []
    for number in range(world):
        child = os.fork()
        if child == 0:
            rank_main(number, world, directory, int(sys.argv[3]) if len(sys.argv) > 3 else 10**9)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
