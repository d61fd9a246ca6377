"""Two ranks, the second of which fails: `failing_ranks.py DIRECTORY unshared|eio|full`.

Each rank writes the class and the message of its error into DIRECTORY/rank-<rank>.json.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

import glo_core as glo
from glo_core.checkpoint import attempt
from tests.distributed.train_ranks import CONFIG, images


def _input_output_error() -> NoReturn:
    """What the kernel says of memory that is not mapped: EIO."""
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        memory.read(1)
    raise AssertionError("address 0 is mapped")


def _no_space() -> NoReturn:
    with Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    raise AssertionError("/dev/full took a byte")


FAULTS: dict[str, Callable[[], NoReturn]] = {"eio": _input_output_error, "full": _no_space}


def rank_main(rank: int, directory: Path, fault: str) -> None:
    torch.set_num_threads(1)
    attempt.PATIENCE_SECONDS = 0.5
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    if fault in FAULTS and rank == 1:

        def read(*_: int) -> dict[str, Tensor]:  # The thread that writes a checkpoint reads codes here.
            FAULTS[fault]()

        glo.CodeTable.read = read  # type: ignore[assignment, method-assign]
    run = directory / f"disk-{rank if fault == 'unshared' else 0}"
    outcome = ["", ""]
    try:
        runtime, intervals = glo.TorchDistributed(), glo.Intervals(checkpoint=100)
        glo.train_phase(CONFIG, images(), glo.Phase(target=400), runtime=runtime, run=run, intervals=intervals)
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    (directory / f"rank-{rank}.json").write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "rendezvous").unlink(missing_ok=True)
    children = []
    for number in range(2):
        child = os.fork()
        if child == 0:
            rank_main(number, place, sys.argv[2])
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
