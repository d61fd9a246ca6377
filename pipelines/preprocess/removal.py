"""Images removed on request: a snapshot that lists their ids, which every reader skips from then on."""

from collections.abc import Callable, Sequence

import numpy as np

from glo_core.common.arrays import UInt8Array
from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import find_ids
from glo_core.dataset_format.records import read_config
from glo_core.dataset_format.snapshots import Snapshot, SnapshotCounts, read_snapshots
from pipelines.preprocess.commit import split_counts, write_snapshot


def remove_images(
    dataset: Location, names: Sequence[str], require_lease: Callable[[], None] = lambda: None
) -> Snapshot | None:
    """Commit the removal of `names`, each an id, source/path or source/path!member.

    The pixels stay in their block until the dataset is made anew; the ids are never assigned again.

    Args:
        require_lease: called before the snapshot is committed; raises if another writer has the dataset now.

    Returns:
        The snapshot, or None if all of them were removed before.

    Raises:
        UserError: if a name is of no image of the dataset.
    """
    snapshots = read_snapshots(dataset)
    if not snapshots:
        raise DatasetError(f"{dataset}: holds no image yet, so that none can be removed")
    ids = find_ids(dataset, names, snapshots, removed_too=True)
    if not len(ids):
        return None
    splits = split_counts(dataset, ids)
    require_lease()
    no_hashes: UInt8Array = np.empty((0, 16), np.uint8)
    return write_snapshot(
        dataset,
        snapshots,
        read_config(dataset),
        ids=ids[:0],
        hashes=no_hashes,
        removed=ids.tolist(),
        counts=SnapshotCounts(files=0, train=-splits["train"], holdout=-splits["holdout"], duplicate=0, rejected=0),
        sources=snapshots[-1].sources,
    )
