"""Grids of a checkpoint: reconstructions, samples of each prior, interpolations, nearest training images."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.arrays import UInt8Array
from glo_core.common.digests import digest_file, digest_json
from glo_core.common.errors import CheckpointError
from glo_core.common.files import atomic_write
from glo_core.common.records import read_record
from glo_core.data.dataset import Dataset
from glo_core.sampling.config import Kind
from glo_core.sampling.gaussian_prior import GaussianPrior
from glo_core.sampling.generate import decode_codes, interpolate
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.followup import REMOVED, FollowUp, newest_checkpoint, open_dataset, removed_input
from pipelines.common.records import DONE_FILE, FitPriorDone, RenderDone, read_run_record
from pipelines.common.stage import Input, Stage, run_id_of
from pipelines.config import RenderConfig, RenderJob
from pipelines.fit_prior import FIT_PRIOR
from pipelines.render_tasks import DatasetAt, choose, search, take

RENDER = FollowUp("render", folder="grids", config_type=RenderConfig, done_type=RenderDone)
log = logging.getLogger("glo.render")


class GridRenderer:
    """Draws the grids of one checkpoint.

    Attributes:
        chosen: the training images that are shown, as many as the grids need.
    """

    def __init__(
        self, config: RenderJob, dataset: Dataset, checkpoint: Checkpoint, priors: dict[Kind, GaussianPrior]
    ) -> None:
        self.config, self.priors = config, priors
        self.dataset, self.code_shards = DatasetAt(str(dataset.path), dataset.digest), checkpoint.code_shards
        self.projection = checkpoint.projection
        self.decoder = checkpoint.decoder(allow_kind=config.decoder_kind)
        count = max(config.rows * config.columns, 2 * config.rows, config.neighbors)
        self.chosen = choose(checkpoint, self.dataset, config.seed, count)
        self.codes = torch.from_numpy(self.chosen.codes)

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
        count = min(self.config.rows * self.config.columns, len(self.codes))
        originals = take(self.dataset, self.chosen.ids[:count])
        pairs = np.stack([originals, decode_codes(self.decoder, self.codes[:count])], axis=1)
        return grid(in_rows(pairs.reshape(-1, *originals.shape[1:]), 2 * min(self.config.columns, count)))

    def interpolations(self) -> Image.Image:
        """Training image, the decoded line from its code to another's, the other image."""
        count = min(self.config.rows, len(self.codes) // 2) or 1
        # Rows 2i and 2i + 1 are the ends of line i; a single image is both ends of its line.
        ends = np.resize(np.arange(len(self.codes)), 2 * count)
        originals = take(self.dataset, self.chosen.ids[ends])
        rows = []
        for i in range(count):
            first, last = self.codes[ends[2 * i]], self.codes[ends[2 * i + 1]]
            line = decode_codes(self.decoder, interpolate(first, last, self.config.columns, self.projection))
            rows.append(np.concatenate([originals[2 * i, None], line, originals[2 * i + 1, None]]))
        return grid(rows)

    def neighbors(self, samples: UInt8Array) -> Image.Image:
        """Sample, then its nearest training images of the whole dataset, nearest first."""
        # ids[q, k] is the image at rank k among the neighbors of sample q.
        ids = search(self.dataset, self.code_shards, samples, min(self.config.neighbors, len(self.codes))).ids
        images = take(self.dataset, ids.reshape(-1)).reshape(*ids.shape, *samples.shape[1:])
        return grid([np.concatenate([samples[i : i + 1], images[i]]) for i in range(len(samples))])


def render(job: RenderJob) -> Path:
    """Draw every grid and return the directory that holds them, `<name>.png` each.

    Raises:
        UserError: if the run has no checkpoint, no prior is fitted to it, or its dataset is nowhere.
    """
    checkpoint = newest_checkpoint(job.run)
    prior_directory, kinds = _fitted_priors(job.run, checkpoint)
    digests = {kind: digest_file(prior_directory / kind / "prior.safetensors") for kind in kinds}
    prior = Input(prior_directory, digest_json(digests), run_id_of(prior_directory))
    directory = RENDER.directory(job.run, checkpoint)

    def prepare(stage: Stage[RenderDone]) -> Callable[[], RenderDone]:
        dataset = open_dataset(stage, job.run, checkpoint, job.dataset)
        priors = {kind: GaussianPrior.load(prior_directory / kind) for kind in kinds}

        def draw() -> RenderDone:
            names = []
            for name, picture in GridRenderer(job, dataset, checkpoint, priors).draw():
                with atomic_write(directory / f"{name}.png") as temporary:
                    picture.save(temporary, format="PNG")
                stage.progress.picture(directory / f"{name}.png", checkpoint.position.images_seen)
                names.append(name)
            log.info("%d grids in %s", len(names), directory)
            return RenderDone(grids=tuple(names))

        return draw

    RENDER.run(job, job.run, checkpoint, prepare, {"prior": prior}, place=job.dataset)
    return directory


def _fitted_priors(run: Path, checkpoint: Checkpoint) -> tuple[Path, tuple[Kind, ...]]:
    """The directory of the priors that are fitted to `checkpoint`, and their kinds."""
    directory = FIT_PRIOR.directory(run, checkpoint)
    record = read_run_record(directory)
    inputs = record.inputs if record is not None and (directory / DONE_FILE).exists() else {}
    if inputs.get("checkpoint") != checkpoint.digest:
        raise CheckpointError(
            f"{directory}: no prior is fitted to the newest checkpoint; run jobs/fit_prior.py --run {run} first"
        )
    removed = removed_input(run, checkpoint, None, directory)  # As `fit_prior` sees it
    if inputs.get(REMOVED) != (removed[REMOVED].digest if removed else None):
        raise CheckpointError(
            f"{directory}: this prior knows images that were removed since; run jobs/fit_prior.py --run {run} first"
        )
    return directory, read_record(directory / DONE_FILE, FitPriorDone).kinds
