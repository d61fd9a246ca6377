"""Which bytes the dataset holds already, and under which id."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import HashIndex, Keys, halves, key_column
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.snapshots import Snapshot


class ContentIndex:
    """Which bytes the dataset holds already, and under which id: 32 bytes of memory for each image."""

    def __init__(self, hashes: Keys, ids: Int64Array) -> None:
        """Take the images of earlier snapshots, in the order of ids.

        Args:
            hashes: BLAKE3-128 of each image's file, uint64 `[n, 2]`.
            ids: int64 `[n]`.
        """
        self.rows, self.ids = HashIndex(hashes), ids

    def id_of(self, content_hash: bytes) -> int | None:
        """The lowest id whose file has the bytes of this hash, or None."""
        if not len(self.rows):
            return None
        row = self.rows.look_up(halves(content_hash))[0]
        return int(self.ids[row]) if row >= 0 else None


class CommittedContents(NamedTuple):
    """What the snapshots before a plan hold."""

    contents: ContentIndex
    sources: frozenset[str]
    """Sources that gave an image, or a duplicate of one"""

    @classmethod
    def read(cls, dataset: Location, snapshots: Sequence[Snapshot]) -> "CommittedContents":
        """Read what `snapshots` hold from the manifest."""
        # Bytes that no file has any more may come back as a new image; a late duplicate never held them.
        freed = np.array([i for s in snapshots for i in (*s.replaced, *s.duplicate_of)], np.int64)
        sources: set[str] = set()
        ids, hashes = [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
        for table in read_parts(dataset, ["image_id", "source", "content_hash", "status"], before=len(snapshots) + 1):
            accepted = table.filter(pc.not_equal(table.column("status"), "rejected"))
            sources.update(accepted.column("source").unique().to_pylist())
            images = table.filter(pc.equal(table.column("status"), "image"))
            # bool [images of this part]
            holds = ~np.isin(images.column("image_id").to_numpy(), freed)
            ids.append(images.column("image_id").to_numpy()[holds])
            hashes.append(key_column(images.column("content_hash"))[holds])
        return cls(ContentIndex(halves(np.concatenate(hashes)), np.concatenate(ids)), frozenset(sources))
