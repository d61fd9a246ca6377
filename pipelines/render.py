"""Grids of a checkpoint: reconstructions, samples of each prior, interpolations, nearest training images."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.arrays import UInt8Array
from glo_core.common.counter_rng import key64, mix64
from glo_core.common.digests import digest_file, digest_json
from glo_core.common.errors import CheckpointError
from glo_core.common.files import atomic_write
from glo_core.common.records import read_record
from glo_core.data.dataset import BlockImages, Dataset
from glo_core.evaluation.neighbors import Neighbors, nearest, take_ids
from glo_core.sampling.config import Kind
from glo_core.sampling.gaussian_prior import GaussianPrior
from glo_core.sampling.generate import decode_codes, interpolate
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.followup import FollowUp, dataset_of, shard_groups
from pipelines.common.ray_data import ray_task
from pipelines.common.ray_session import task_results
from pipelines.common.records import DONE_FILE, FitPriorDone, RenderDone
from pipelines.common.stage import Input, Stage, run_id_of
from pipelines.config import RenderConfig, RenderJob
from pipelines.fit_prior import FIT_PRIOR

RENDER = FollowUp("render", folder="grids", config_type=RenderConfig, done_type=RenderDone)
log = logging.getLogger("glo.render")


class GridRenderer:
    """Draws the grids of one checkpoint."""

    def __init__(
        self, config: RenderJob, dataset: Dataset, checkpoint: Checkpoint, priors: dict[Kind, GaussianPrior]
    ) -> None:
        self.config, self.dataset, self.priors = config, dataset, priors
        self.projection = checkpoint.projection
        self.images = dataset.images()
        self.decoder = checkpoint.decoder(allow_kind=config.decoder_kind)
        ids, codes = checkpoint.codes()
        present = np.isin(ids, self.images.ids)  # The dataset may have removed images since.
        ids, codes = ids[present], codes[present]
        # Fixed by the seed and the ids alone, so that a later checkpoint shows the same images.
        order = np.argsort(mix64(key64("render", config.seed), ids))
        self.ids, self.codes = ids[order], torch.from_numpy(codes[order])

    def draw(self) -> Iterator[tuple[str, Image.Image]]:
        """Names and pictures of every grid."""
        yield "reconstructions", self.reconstructions()
        yield "interpolations", self.interpolations()
        for kind, prior in self.priors.items():
            samples = decode_codes(self.decoder, prior.sample(self.config.rows * self.config.columns, self.config.seed))
            yield f"samples-{kind}", grid(in_rows(samples, self.config.columns))
            yield f"neighbors-{kind}", self.neighbors(samples[: self.config.rows])

    def reconstructions(self) -> Image.Image:
        """Training image, its reconstruction, the next image, ... in each row."""
        count = min(self.config.rows * self.config.columns, len(self.ids))
        originals = take_ids(self.images, self.ids[:count])
        pairs = np.stack([originals, decode_codes(self.decoder, self.codes[:count])], axis=1)
        return grid(in_rows(pairs.reshape(-1, *originals.shape[1:]), 2 * min(self.config.columns, count)))

    def interpolations(self) -> Image.Image:
        """Training image, the decoded line from its code to another's, the other image."""
        count = min(self.config.rows, len(self.ids) // 2) or 1
        # Rows 2i and 2i + 1 are the ends of line i; a single image is both ends of its line.
        ends = np.resize(np.arange(len(self.ids)), 2 * count)
        originals = take_ids(self.images, self.ids[ends])
        rows = []
        for i in range(count):
            first, last = self.codes[ends[2 * i]], self.codes[ends[2 * i + 1]]
            line = decode_codes(self.decoder, interpolate(first, last, self.config.columns, self.projection))
            rows.append(np.concatenate([originals[2 * i, None], line, originals[2 * i + 1, None]]))
        return grid(rows)

    def neighbors(self, samples: UInt8Array) -> Image.Image:
        """Sample, then its nearest training images of the whole dataset, nearest first."""
        # ids[q, k] is the image at rank k among the neighbors of sample q.
        ids = search(self.dataset, samples, min(self.config.neighbors, len(self.ids))).ids
        rows = [np.concatenate([samples[i : i + 1], take_ids(self.images, ids[i])]) for i in range(len(samples))]
        return grid(rows)


@ray_task
def search_shards(dataset: str, digest: str, shards: list[int], queries: UInt8Array, k: int) -> Neighbors:
    """Nearest images among the code shards `shards`."""
    return nearest(queries, BlockImages(Dataset.open(dataset).at(digest), shards), k)


def search(dataset: Dataset, queries: UInt8Array, k: int) -> Neighbors:
    """Nearest training images of `queries` (uint8 `[q, H, W, C]`) over the whole dataset, on Ray."""
    tasks = [
        search_shards.remote(str(dataset.path), dataset.digest, shards, queries, k)
        for shards in shard_groups(dataset.config.code_shards)
    ]
    return functools.reduce(Neighbors.merge, task_results(tasks))


def render(job: RenderJob) -> Path:
    """Draw every grid and return the directory that holds them, `<name>.png` each.

    Raises:
        UserError: if the run has no checkpoint, no prior is fitted to it, or its dataset is not where it was.
    """
    checkpoint = Checkpoint.latest(job.run)
    prior_directory, kinds = _fitted_priors(job.run, checkpoint)
    digests = {kind: digest_file(prior_directory / kind / "prior.safetensors") for kind in kinds}
    prior = Input(prior_directory, digest_json(digests), run_id_of(prior_directory))
    dataset = dataset_of(job.run, checkpoint)
    directory = RENDER.directory(job.run, checkpoint)

    def draw(stage: Stage[RenderDone]) -> RenderDone:
        priors = {kind: GaussianPrior.load(prior_directory / kind) for kind in kinds}
        names = []
        for name, picture in GridRenderer(job, dataset, checkpoint, priors).draw():
            with atomic_write(directory / f"{name}.png") as temporary:
                picture.save(temporary, format="PNG")
            stage.progress.picture(directory / f"{name}.png", checkpoint.position.images_seen)
            names.append(name)
        log.info("%d grids in %s", len(names), directory)
        return RenderDone(grids=tuple(names))

    RENDER.run(job, job.run, checkpoint, draw, {"prior": prior})
    return directory


def _fitted_priors(run: Path, checkpoint: Checkpoint) -> tuple[Path, tuple[Kind, ...]]:
    """The directory of the priors that are fitted to `checkpoint`, and their kinds."""
    directory = FIT_PRIOR.directory(run, checkpoint)
    if not (directory / DONE_FILE).exists():
        raise CheckpointError(
            f"{directory}: no prior is fitted to the newest checkpoint; run jobs/fit_prior.py --run {run} first"
        )
    return directory, read_record(directory / DONE_FILE, FitPriorDone).kinds
