"""`glo.train` by two ranks on one run: `torchrun notebook_ranks.py RUN`. Each rank writes RUN-<rank>.json.

A run is begun, asked for again, trained on, and asked for with other images.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import glo_core as glo
from tests.distributed.train_ranks import CONFIG, images

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runtime, run = glo.TorchDistributed(), Path(sys.argv[1])
    results: list[object] = []
    for target in (200, 200, 400):
        result = glo.train(images(), config=CONFIG, images_seen=target, run=run, runtime=runtime, progress=False)
        results.append([result.position.images_seen, result.position.phase, result.finished, result.metrics])
    others = glo.TensorImages(torch.zeros(77, 16, 16, 1, dtype=torch.uint8), code_shards=8)
    try:
        glo.train(others, config=CONFIG, images_seen=900, run=run, runtime=runtime, progress=False)
    except glo.CheckpointError as error:
        results.append(str(error))
    Path(f"{run}-{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.barrier()  # Ranks leave together: one that is left alone may abort when it exits.
    dist.destroy_process_group()
