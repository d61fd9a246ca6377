"""One optimizer step by W processes under torch.distributed: `step_ranks.py DIRECTORY W...`.

For each W and kind of decoder, rank r saves the gradients of its step as DIRECTORY/KIND-W-r.pt: of the codes by image
id, and of the decoder. The global batch is the same for every W: four lanes, some of them with padding.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import glo_core as glo
from glo_core.training.auto_config import resolve_defaults
from glo_core.training.config import ResolvedTrainConfig
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.learner import Learner
from glo_core.training.schedule import Rates

LANES, BATCH = 4, 12
KINDS = ("residual", "seed")
"""A decoder without batch norm, and one with"""


def images() -> glo.TensorImages:
    """23 images in lanes of 9, 7, 5 and 2: the first step of three has 3 + 2 + 1 + 0 valid rows."""
    ids = np.concatenate([lane + LANES * np.arange(size) for lane, size in enumerate((9, 7, 5, 2))]).astype(np.int64)
    pixels = np.random.default_rng(0).integers(0, 256, (len(ids), 16, 16, 1), dtype=np.uint8)
    return glo.TensorImages(torch.from_numpy(pixels), ids, code_shards=LANES)


def config(kind: str) -> ResolvedTrainConfig:
    code = glo.CodeConfig(dim=4, optimizer="sgd", learning_rate=1.0)
    decoder = glo.DecoderConfig(kind=kind, filters=(16, 8))
    recipe = glo.TrainConfig(batch_size=BATCH, precision="float64", code=code, decoder=decoder)
    return resolve_defaults(recipe, num_images=23, resolution=16)


def step(kind: str, runtime: glo.SingleProcess) -> dict[str, torch.Tensor]:
    """Gradients of the first step: of each code by its id (one step of SGD of rate 1), and of the decoder."""
    epochs = EpochBatches(config(kind), images(), runtime)
    ids = epochs.images.ids
    raw = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 4))[ids])
    table = glo.CodeTable(epochs.config.code, ids, raw.clone())
    learner = Learner(epochs.config, epochs.images, table, runtime)
    learner.step(next(epochs.batches(epochs.orders(0), 0)), Rates(decoder=1.0, codes=1.0))
    codes = {str(i): gradient for i, gradient in zip(ids, raw - table.raw, strict=True)}
    return codes | {name: parameter.grad for name, parameter in learner.decoder.named_parameters()}


def rank_main(directory: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    place = directory / f"rendezvous-{world_size}"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world_size)
    for kind in KINDS:
        torch.save(step(kind, glo.TorchDistributed()), directory / f"{kind}-{world_size}-{rank}.pt")
    dist.barrier()  # Ranks leave together: one that is left alone may abort when it exits.
    dist.destroy_process_group()


if __name__ == "__main__":
    children = []
    for world in map(int, sys.argv[2:]):
        for number in range(world):
            child = os.fork()  # After the imports, which cost more than the step.
            if child == 0:
                rank_main(Path(sys.argv[1]), number, world)
                os._exit(0)
            children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
