"""Images removed on request: a snapshot that lists their ids, which every reader skips from then on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from glo_core.common.arrays import UInt8Array
from glo_core.common.errors import UserError
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import find_ids
from glo_core.dataset_format.snapshots import read_snapshots
from pipelines.preprocess.commit import split_counts, write_snapshot


def remove_images(dataset: Location, names: Sequence[str]) -> dict[str, Any]:
    """Commit the removal of `names`, each an id or source/path (and !member). Returns the snapshot.

    The pixels stay in their block until the dataset is made anew; the ids are never dealt again.

    Raises:
        UserError: if a name is of no image of the dataset.
    """
    snapshots = read_snapshots(dataset)
    if not snapshots:
        raise UserError(f"{dataset}: holds no image yet, so that none can be removed")
    ids = find_ids(dataset, names, snapshots, removed_too=True)
    if not len(ids):
        print(f"preprocess: nothing to remove; {dataset} is up to date", flush=True)
        return {}
    lost = split_counts(dataset, ids)
    no_hashes: UInt8Array = np.empty((0, 16), np.uint8)
    snapshot = write_snapshot(
        dataset,
        snapshots,
        ids=np.empty(0, np.int64),
        hashes=no_hashes,
        removed=ids,
        record={
            "counts": {
                "files": 0, "train": -lost["train"], "holdout": -lost["holdout"], "duplicate": 0, "rejected": 0,
            },
            "rejected": {},
            "duplicate_of": {},
            "replaced": {},
            "blocks": [],
            "sources": snapshots[-1]["sources"],
            "mlflow_run_id": None,
        },
    )  # fmt: skip
    print(f"preprocess: removed {len(ids)} image(s); {dataset} is at snapshot {snapshot['number']}", flush=True)
    return snapshot
