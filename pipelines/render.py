"""Grids of a checkpoint: reconstructions, samples of each prior, interpolations, nearest training images."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.arrays import UInt8Array
from glo_core.common.counter_rng import key64, mix64
from glo_core.common.digests import digest_file, digest_json
from glo_core.common.errors import UserError
from glo_core.common.files import atomic_write, read_json
from glo_core.data.dataset import BlockImages, Dataset
from glo_core.evaluation.neighbors import Neighbors, nearest, take_ids
from glo_core.sampling.gaussian_prior import GaussianPrior
from glo_core.sampling.generate import decode_codes, interpolate
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.ray_session import ray_session
from pipelines.common.stage import Input, identity_of, open_stage, run_id_of
from pipelines.config import RenderConfig, RenderJob
from pipelines.fit_prior import prior_directory


class GridRenderer:
    """Draws the grids of one checkpoint."""

    def __init__(
        self, job: RenderConfig, dataset: Dataset, checkpoint: Checkpoint, priors: dict[str, GaussianPrior]
    ) -> None:
        self.job, self.dataset, self.priors = job, dataset, priors
        self.projection = checkpoint.projection
        self.images = dataset.images()
        self.decoder = checkpoint.decoder()
        ids, codes = checkpoint.codes()
        held = np.isin(ids, self.images.ids)  # Images removed since are not shown.
        ids, codes = ids[held], codes[held]
        # Fixed by the seed and the ids alone, so that a later checkpoint shows the same images.
        order = np.argsort(mix64(key64("render", job.seed), ids))
        self.ids, self.codes = ids[order], torch.from_numpy(codes[order])

    def draw(self) -> Iterator[tuple[str, Image.Image]]:
        """Names and pictures of every grid."""
        yield "reconstructions", self.reconstructions()
        yield "interpolations", self.interpolations()
        for kind, prior in self.priors.items():
            samples = decode_codes(self.decoder, prior.sample(self.job.rows * self.job.columns, self.job.seed))
            yield f"samples-{kind}", grid(in_rows(samples, self.job.columns))
            yield f"neighbors-{kind}", self.neighbors(samples[: self.job.rows])

    def reconstructions(self) -> Image.Image:
        """Training image, its reconstruction, the next image, ... in each row."""
        count = min(self.job.rows * self.job.columns, len(self.ids))
        originals = take_ids(self.images, self.ids[:count])
        pairs = np.stack([originals, decode_codes(self.decoder, self.codes[:count])], axis=1)
        return grid(in_rows(pairs.reshape(-1, *originals.shape[1:]), 2 * min(self.job.columns, count)))

    def interpolations(self) -> Image.Image:
        """Training image, the decoded line from its code to another's, the other image."""
        count = min(self.job.rows, len(self.ids) // 2) or 1
        ends = np.resize(self.ids, 2 * count)
        originals = take_ids(self.images, ends)
        rows = []
        for i in range(count):
            line = interpolate(
                self.codes[2 * i % len(self.codes)],
                self.codes[(2 * i + 1) % len(self.codes)],
                self.job.columns,
                self.projection,
            )
            rows.append(
                np.concatenate(
                    [
                        originals[2 * i : 2 * i + 1],
                        decode_codes(self.decoder, line),
                        originals[2 * i + 1 : 2 * i + 2],
                    ]
                )
            )
        return grid(rows)

    def neighbors(self, samples: UInt8Array) -> Image.Image:
        """Sample, then its nearest training images of the whole dataset, nearest first."""
        found = search(self.dataset, samples, min(self.job.neighbors, len(self.ids)))
        rows = [np.concatenate([samples[i : i + 1], take_ids(self.images, found.ids[i])]) for i in range(len(samples))]
        return grid(rows)


@ray.remote
def search_shards(dataset: str, digest: str, shards: list[int], queries: UInt8Array, k: int) -> Neighbors:
    """Nearest images among some code shards."""
    return nearest(queries, BlockImages(Dataset.open(dataset).at(digest), shards), k)


def search(dataset: Dataset, queries: UInt8Array, k: int) -> Neighbors:
    """Nearest training images of `queries` (uint8 `[q, H, W, C]`) over the whole dataset, on Ray."""
    tasks = [
        search_shards.remote(
            str(dataset.path), dataset.digest, list(range(first, dataset.config.code_shards, 8)), queries, k
        )
        for first in range(min(8, dataset.config.code_shards))
    ]
    return functools.reduce(Neighbors.merge, ray.get(tasks))


def render(job: RenderJob) -> Path:
    """Draw every grid and return the directory that holds them.

    Raises:
        UserError: if the run has no checkpoint, no prior is fitted to it, or its dataset is not where it was.
    """
    checkpoint = Checkpoint.latest(job.run)
    images_seen = checkpoint.position.images_seen
    priors_at = prior_directory(job.run, images_seen)
    if not (priors_at / "done.json").exists():
        raise UserError(
            f"{priors_at}: no prior is fitted to the newest checkpoint; run jobs/fit_prior.py --run {job.run} first"
        )
    kinds = read_json(priors_at / "done.json")["kinds"]
    fitted = {kind: digest_file(priors_at / kind / "prior.safetensors") for kind in kinds}
    dataset = Dataset.open(read_json(job.run / "run.json")["paths"]["dataset"]).at(checkpoint.snapshot)
    directory = job.run / "grids" / str(images_seen)
    inputs = {
        "checkpoint": Input(checkpoint.directory, checkpoint.digest, run_id_of(job.run)),
        "prior": Input(priors_at, digest_json(fitted), run_id_of(priors_at)),
    }
    with open_stage(
        "render",
        directory,
        root=job.run.parent,
        identity=identity_of(job, RenderConfig),
        inputs=inputs,
        tracking=job,
    ) as stage:
        if stage.done:
            print(f"render: {directory} is up to date", flush=True)
            return directory
        stage.begin(stage.record["identity"])
        painter = GridRenderer(job, dataset, checkpoint, {kind: GaussianPrior.load(priors_at / kind) for kind in kinds})
        names = []
        with ray_session():
            for name, picture in painter.draw():
                with atomic_write(directory / f"{name}.png") as temporary:
                    picture.save(temporary, format="PNG")
                stage.tracker.image(directory / f"{name}.png", images_seen)
                names.append(name)
        stage.finish({"grids": names})
    print(f"render: {len(names)} grids in {directory}", flush=True)
    return directory
