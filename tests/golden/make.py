"""Write the golden dataset and run of the present format version: `python -m tests.golden.make` (needs no cluster)."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from glo_core import CodeConfig, Dataset, DecoderConfig, Phase, TrainConfig, train_phase
from glo_core.common.location import Location
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess

HERE = Path(__file__).parent
FORMAT_VERSION = 1
"""The version that the formats have now"""
CONFIG = TrainConfig(
    batch_size=8, code=CodeConfig(dim=3), decoder=DecoderConfig(kind="seed", filters=(4,), kernel_size=3)
)


def main() -> None:
    target = HERE / f"v{FORMAT_VERSION}"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "golden"
        for number in range(24):
            path = images / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
        (images / "notes.txt").write_text("no image")
        dataset = Path(scratch) / "dataset"
        preprocess(
            PreprocessJob(
                input=(Location(images),),
                dataset=Location(dataset),
                resolution=8,
                channels=3,
                code_shards=4,
                holdout=0.2,
            )
        )
        (dataset / ".lock").unlink()
        shutil.copytree(dataset, target / "dataset")
    train_phase(CONFIG, Dataset.open(target / "dataset").images(), Phase(target=60), run=target / "run")


if __name__ == "__main__":
    main()
