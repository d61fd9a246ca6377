"""The losses of 100 steps in float64: `python -m tests.golden.losses` writes them anew."""

import json
from pathlib import Path

import numpy as np
import torch

import glo_core as glo
from glo_core.common.runtime import Metrics

FILE = Path(__file__).parent / "losses.json"
STEPS, BATCH = 100, 24


DECODERS = {
    "seed": glo.DecoderConfig(kind="seed", filters=(16, 8), kernel_size=5),
    "dcgan": glo.DecoderConfig(filters=(16, 8)),
}
"""By the key of the golden losses"""


def losses(decoder: str) -> list[float]:
    """Mean loss of each step: unequal lanes, padding, batch norm, PCA init, cosine; 150 noisy images of 16 px."""
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (150, 4, 4, 1)).repeat(4, axis=1).repeat(4, axis=2)
    images = torch.from_numpy((0.8 * smooth + random.integers(0, 50, (150, 16, 16, 1))).astype(np.uint8))
    config = glo.TrainConfig(
        batch_size=BATCH,
        precision="float64",
        learning_rate=1e-3,
        code=glo.CodeConfig(dim=6, learning_rate=5e-3),
        decoder=DECODERS[decoder],
    )
    values: list[float] = []

    def on_report(_: int, metrics: Metrics) -> None:
        if "loss" in metrics:
            values.append(metrics["loss"])

    glo.train_phase(
        config,
        glo.TensorImages(images),
        glo.Phase(target=STEPS * BATCH),
        runtime=glo.SingleProcess(on_report=on_report),
        intervals=glo.Intervals(report=1),
    )
    return values[:STEPS]


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: losses(name) for name in DECODERS}, indent=0) + "\n")
