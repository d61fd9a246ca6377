"""Which bytes the dataset holds already, and under which id."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import HashIndex, Keys, halves, key_column
from glo_core.dataset_format.manifest import read_parts


class ContentIndex:
    """Which bytes the dataset holds already, and under which id: 32 bytes of memory for each image."""

    def __init__(self, hashes: Keys, ids: Int64Array) -> None:
        """Take the images of earlier snapshots, in the order of ids."""
        self.table, self.ids = HashIndex(hashes), ids

    def id_of(self, content: bytes) -> int | None:
        """The lowest id with these bytes."""
        if not len(self.table):
            return None
        row = self.table.look_up(halves(content))[0]
        return int(self.ids[row]) if row >= 0 else None


class EarlierSnapshots(NamedTuple):
    """What the snapshots before a plan hold."""

    contents: ContentIndex
    sources: frozenset[str]
    """Sources that gave an image, or a duplicate of one"""

    @classmethod
    def read(cls, dataset: Location, snapshots: Sequence[Mapping[str, Any]]) -> "EarlierSnapshots":
        # Bytes that no file has any more may come back as a new image; a late duplicate never held them.
        gone = np.array([int(i) for s in snapshots for i in (*s.get("replaced", {}), *s["duplicate_of"])], np.int64)
        sources: set[str] = set()
        ids, hashes = [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
        for table in read_parts(dataset, ["image_id", "source", "content_hash", "status"], before=len(snapshots) + 1):
            sources.update(
                table.filter(pc.not_equal(table.column("status"), "rejected")).column("source").unique().to_pylist()
            )
            images = table.filter(pc.equal(table.column("status"), "image"))
            kept = ~np.isin(images.column("image_id").to_numpy(), gone)
            ids.append(images.column("image_id").to_numpy()[kept])
            hashes.append(key_column(images.column("content_hash"))[kept])
        return cls(ContentIndex(halves(np.concatenate(hashes)), np.concatenate(ids)), frozenset(sources))
