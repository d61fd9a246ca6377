"""Pixels of removed images, gone from the disk: their blocks are written anew, with zeros in their place."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.digests import digest_file
from glo_core.common.errors import DatasetError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.common.records import write_record
from glo_core.dataset_format.blocks import BlockEntry, blanked_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.manifest import open_part, rows_of
from glo_core.dataset_format.records import read_config, schema_metadata
from glo_core.dataset_format.snapshots import Snapshot, read_snapshots, removed_ids, snapshot_path


def erase_removed(dataset: Location, require_lease: Callable[[], None]) -> int:
    """Write zeros over the pixels of every removed image. Returns the number of blocks that were written anew.

    Ids, manifest and digests of the snapshots stay: the digest of a snapshot names content hashes, not blocks. Readers
    that have a block mapped keep the old file until they close it. An interruption is made good by the next call.

    Args:
        require_lease: called before each change; raises if another writer has the dataset now.

    Raises:
        DatasetError: if a block is damaged; it is left as it is.
    """
    snapshots, config = read_snapshots(dataset), read_config(dataset)
    rows = rows_of(dataset, np.sort(removed_ids(snapshots)), ["block"])
    rows = rows.filter(pc.is_valid(rows.column("block")))
    count = 0
    for name in sorted(set(rows.column("block").to_pylist())):
        ids = rows.filter(pc.equal(rows.column("block"), name)).column("image_id").to_numpy()
        snapshot = next((s for s in snapshots for block in s.blocks if block.name == name), None)
        if snapshot is not None:
            count += _erase_block(dataset, config, snapshot.number, name, ids, require_lease)
    return count


def _erase_block(
    dataset: Location,
    config: ResolvedDatasetConfig,
    number: int,
    name: str,
    ids: Int64Array,
    require_lease: Callable[[], None],
) -> bool:
    """Blank the images `ids` (int64 `[n]`) of the block `name` of snapshot `number`; False if they were blank."""
    place = dataset / "blocks" / name
    # Another block of the same snapshot may have been written anew since `read_snapshots`.
    snapshot = read_snapshots(dataset)[number - 1]
    listed = next(block for block in snapshot.blocks if block.name == name)
    present = digest_file(place)
    with blanked_block(place, ids, config) as (entry, publish):
        if present not in (listed.blake3, entry.blake3) and entry != listed:
            raise DatasetError(f"{place}: its checksum is not the snapshot's; copy the block back, then erase again")
        if present == entry.blake3 and entry == listed:
            return False
        require_lease()
        # The records first: an interruption leaves a block that becomes the listed one when it is blanked again.
        _write_part_entry(dataset, name, entry)
        _write_snapshot_entry(dataset, snapshot, entry)
        publish()
    return True


def _write_part_entry(dataset: Location, block: str, entry: BlockEntry) -> None:
    """Name the new block in the record of its part of the manifest; the rows stay."""
    name = block.replace(".arrow", ".parquet")
    file, record = open_part(dataset, name)
    table: Any = file.read()
    table = table.replace_schema_metadata(schema_metadata(dataclasses.replace(record, block=entry)))
    with atomic_write(dataset / "manifest" / name) as temporary, temporary.open("wb") as sink:
        pq.write_table(table, sink)


def _write_snapshot_entry(dataset: Location, snapshot: Snapshot, entry: BlockEntry) -> None:
    """Name the new block in its snapshot, whose digest does not depend on it."""
    blocks = tuple(entry if block.name == entry.name else block for block in snapshot.blocks)
    write_record(snapshot_path(dataset, snapshot.number), dataclasses.replace(snapshot, blocks=blocks))
