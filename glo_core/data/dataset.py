"""A dataset as of one of its snapshots. PyTorch is imported with its images, when somebody asks for them."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glo_core.common.arrays import Int64Array
from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.snapshots import Snapshot, read_dataset, read_snapshots, removed_ids

if TYPE_CHECKING:
    import glo_core.data.block_images


class Dataset:
    """A dataset as of one of its snapshots, without the images that a later snapshot removed."""

    def __init__(
        self, path: Location, config: ResolvedDatasetConfig, snapshots: Sequence[Snapshot], removed: Int64Array
    ) -> None:
        """Take the snapshots up to the one that is meant, oldest first, and all ids that any snapshot removed."""
        self.path, self.config, self.snapshots, self.removed = path, config, snapshots, removed

    @classmethod
    def open(cls, place: str | Path | Location) -> "Dataset":
        """Open the newest snapshot of the dataset at `place`, a directory or a URI.

        Raises:
            DatasetError: if there is no dataset, it holds no snapshot, a snapshot is missing, or a record is damaged or
                of another format or version.
        """
        path = Location(place)
        config, snapshots = read_dataset(path)
        return cls(path, config, snapshots, removed_ids(snapshots))

    @property
    def digest(self) -> str:
        """The digest of the snapshot, in hex, which identifies what the dataset holds."""
        return self.snapshots[-1].digest

    @property
    def root_digest(self) -> str:
        """The digest of the first snapshot: the same for a dataset and all that is appended to it."""
        return self.snapshots[0].digest

    @property
    def num_train(self) -> int:
        """Training images by the counts of the snapshots; images that a later snapshot removed count too."""
        return sum(snapshot.counts.train for snapshot in self.snapshots)

    def at(self, digest: str) -> "Dataset":
        """The dataset as it was at an older snapshot, without the images that were removed since.

        Raises:
            DatasetError: if `digest` is not in the chain.
        """
        for number, snapshot in enumerate(self.snapshots, start=1):
            if snapshot.digest == digest:
                return Dataset(self.path, self.config, self.snapshots[:number], self.removed)
        chain = ", ".join(snapshot.digest[:12] for snapshot in self.snapshots)
        raise DatasetError(f"{self.path}: snapshot {digest[:12]} is not of this dataset (it has {chain})")

    def removed_by_now(self) -> Int64Array:
        """Every id that is removed by now, also by snapshots that came after this dataset was opened, int64 `[m]`."""
        return removed_ids(read_snapshots(self.path))

    def removed_since(self) -> Int64Array:
        """Ids that snapshots after this one have removed by now, int64 `[m]`, ascending.

        Late duplicates are left out: no reader ever saw them.
        """
        later = read_snapshots(self.path)[len(self.snapshots) :]
        ids = {image_id for snapshot in later for image_id in snapshot.removed if image_id not in snapshot.duplicate_of}
        return np.array(sorted(ids), np.int64)

    def block_paths(self) -> list[Location]:
        """The Arrow files, in the order of ids."""
        return [self.path / "blocks" / block.name for snapshot in self.snapshots for block in snapshot.blocks]

    def images(self, shards: Sequence[int] | None = None) -> "glo_core.data.block_images.BlockImages":
        """The training images of `shards` (default: all)."""
        from glo_core.data.block_images import BlockImages

        return BlockImages(self, range(self.config.code_shards) if shards is None else shards)

    def held_out(self, blocks: Collection[str] | None = None) -> "glo_core.data.block_images.BlockImages":
        """The held-out images of `blocks`, by name (default: all)."""
        from glo_core.data.block_images import BlockImages

        return BlockImages(self, (), holdout=True, blocks=blocks)
