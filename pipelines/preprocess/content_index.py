"""Which bytes and which pixels the dataset holds already, and under which id."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import HashIndex, Keys, halves, key_column
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.snapshots import Snapshot

_NO_HASHES: UInt8Array = np.empty((0, 16), np.uint8)


class ContentIndex:
    """Which bytes and which pixels the dataset holds already, and under which id: 56 bytes of memory for each image."""

    def __init__(self, hashes: Keys, pixel_hashes: Keys, ids: Int64Array) -> None:
        """Take the images of earlier snapshots, in the order of ids.

        Args:
            hashes: BLAKE3-128 of each image's file, uint64 `[n, 2]`.
            pixel_hashes: BLAKE3-128 of each image's pixels, uint64 `[n, 2]`.
            ids: int64 `[n]`.
        """
        self.rows, self.rows_by_pixels, self.ids = HashIndex(hashes), HashIndex(pixel_hashes), ids

    def id_of(self, content_hash: bytes) -> int | None:
        """The lowest id whose file has the bytes of this hash, or None."""
        return self._id(self.rows, content_hash)

    def id_of_pixels(self, pixel_hash: bytes) -> int | None:
        """The lowest id whose image has the pixels of this hash, or None."""
        return self._id(self.rows_by_pixels, pixel_hash)

    def _id(self, index: HashIndex, key: bytes) -> int | None:
        if not len(index):
            return None
        row = index.look_up(halves(key))[0]
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
        ids, hashes, pixel_hashes = [np.empty(0, np.int64)], [_NO_HASHES], [_NO_HASHES]
        columns = ["image_id", "source", "content_hash", "pixel_hash", "status"]
        for table in read_parts(dataset, columns, before=len(snapshots) + 1):
            accepted = table.filter(pc.not_equal(table.column("status"), "rejected"))
            sources.update(accepted.column("source").unique().to_pylist())
            images = table.filter(pc.equal(table.column("status"), "image"))
            # bool [images of this part]
            holds = ~np.isin(images.column("image_id").to_numpy(), freed)
            ids.append(images.column("image_id").to_numpy()[holds])
            hashes.append(key_column(images.column("content_hash"))[holds])
            pixel_hashes.append(key_column(images.column("pixel_hash"))[holds])
        keys, pixel_keys = halves(np.concatenate(hashes)), halves(np.concatenate(pixel_hashes))
        return cls(ContentIndex(keys, pixel_keys, np.concatenate(ids)), frozenset(sources))
