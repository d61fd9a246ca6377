"""Images removed on request: a snapshot that lists their ids, which every reader skips from then on."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from glo_core.blocks import read_snapshots
from glo_core.decode import UInt8Array
from glo_core.files import UserError
from glo_core.hashing import Int64Array
from glo_core.location import Location
from pipelines.commit import live_ids, split_counts, write_snapshot
from pipelines.manifest import read_parts


def remove_images(dataset: Location, names: Sequence[str]) -> dict[str, Any]:
    """Commit the removal of `names`, each an id or source/path (and !member). Returns the snapshot.

    The pixels stay in their block until the dataset is made anew; the ids are never dealt again.

    Raises:
        UserError: if a name is of no image of the dataset.
    """
    snapshots = read_snapshots(dataset)
    if not snapshots:
        raise UserError(f"{dataset}: holds no image yet, so that none can be removed")
    ids = find_ids(dataset, names, snapshots)
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


def find_ids(dataset: Location, names: Sequence[str], snapshots: Sequence[Mapping[str, Any]]) -> Int64Array:
    """The ids (int64, ascending) of live images that `names` give as ids or as source/path.

    Raises:
        UserError: naming the first that is none.
    """
    wanted = {name: int(name) for name in names if name.isdecimal()}
    paths = {name for name in names if name not in wanted}
    if paths:
        wanted |= _ids_of_paths(dataset, paths)
    live = live_ids(dataset, np.array(list(wanted.values()), np.int64), snapshots)
    for name in names:
        if wanted.get(name) not in live:
            raise UserError(f"{name}: no image of {dataset}; give an id, or source/path as the manifest has them")
    return np.array(sorted(set(wanted.values())), np.int64)


def _ids_of_paths(dataset: Location, names: set[str]) -> dict[str, int]:
    """The newest image of each path."""
    found: dict[str, int] = {}
    files = {name: tuple(os.fsencode(part) for part in name.partition("/")[::2]) for name in names}
    for table in read_parts(dataset, ["image_id", "source", "path", "member", "status"]):
        table = table.filter(pc.equal(table.column("status"), "image"))
        for name, (source, path) in files.items():
            path, _, member = path.partition(b"!") if b"!" in path else (path, b"", b"")
            here = pc.and_(pc.equal(table.column("source"), os.fsdecode(source)), pc.equal(table.column("path"), path))
            rows = table.filter(pc.and_(here, pc.equal(pc.fill_null(table.column("member"), b""), member)))
            found |= {name: i for i in rows.column("image_id").to_pylist()}  # noqa: B035 - the newest
    return found
