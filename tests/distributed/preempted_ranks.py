"""Two ranks, of which one alone is told of a machine that leaves: `preempted_ranks.py DIRECTORY RANK`.

The other rank comes to the first step a second later. Each writes the images that it has seen
at the end to DIRECTORY/rank-<rank>.json.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import glo_core as glo
from tests.distributed.train_ranks import CONFIG, images


class Told(glo.TorchDistributed):
    """A rank that hears of the machine, or does not."""

    told = False

    def preempted(self) -> bool:
        return self.told


def rank_main(rank: int, directory: Path, told: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    runtime, run = Told(), directory / "run"
    runtime.told = rank == told

    def late(images_seen: int) -> None:
        if rank != told and images_seen < 100:
            time.sleep(1)

    trained = glo.train_phase(CONFIG, images(), glo.Phase(target=1600), runtime=runtime, run=run, on_step=late)
    (directory / f"rank-{rank}.json").write_text(json.dumps(trained.position.images_seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            rank_main(number, place, int(sys.argv[2]))
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
