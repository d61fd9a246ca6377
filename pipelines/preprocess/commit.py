"""The snapshot: one small file, written last, that makes a plan's images part of the dataset."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.errors import UserError
from glo_core.common.files import FORMAT_VERSION, open_parquet, read_json, read_parquet, write_json
from glo_core.common.location import Location
from glo_core.dataset_format.blocks import open_block
from glo_core.dataset_format.config import read_config
from glo_core.dataset_format.hash_index import HashIndex, halves, key_column
from glo_core.dataset_format.manifest import block_path, live_ids, manifest_path, read_parts, rows_of
from glo_core.dataset_format.snapshots import snapshot_digest
from pipelines.common.versions import library_versions
from pipelines.preprocess.content_index import EarlierSnapshots
from pipelines.preprocess.plan import Plan, plan_names


def snapshot_path(dataset: Location, number: int) -> Location:
    return dataset / "snapshots" / f"{number:06d}.json"


def commit(
    dataset: Location, plan: Plan, snapshots: Sequence[Mapping[str, Any]], earlier: EarlierSnapshots, mlflow_run_id: str
) -> tuple[dict[str, Any], str]:
    """Write the snapshot of a plan whose blocks are done.

    Returns it, and a complaint about an input that never gave an image ("" if there is none).

    Raises:
        UserError: if nothing in the plan is an image, which leaves no trace; or if a block is gone.
    """
    columns = ["image_id", "source", "content_hash", "split", "status", "reason"]
    parts = [read_parquet(manifest_path(dataset, plan.number, block), columns) for block in range(plan.blocks)]
    manifest = pa.concat_tables(parts)
    images = manifest.filter(pc.equal(manifest.column("status"), "image"))
    complaint = _without_image(plan, manifest, earlier)
    if complaint and not len(images):
        _discard(dataset, plan)
        raise UserError(complaint)
    ids, hashes = images.column("image_id").to_numpy(), key_column(images.column("content_hash"))
    late = _late_duplicates(ids, hashes)
    replaced = _replaced(dataset, plan, manifest, snapshots) if plan.on_change == "replace" else {}
    kept = ~np.isin(ids, list(late))
    train = kept & np.asarray(pc.equal(images.column("split"), "train"))
    status, reasons = (_counts(manifest.column(name)) for name in ("status", "reason"))
    gone = split_counts(dataset, np.array(list(replaced), np.int64))
    counts = {
        "files": plan.rows,
        "train": int(train.sum()) - gone["train"],
        "holdout": int((kept & ~train).sum()) - gone["holdout"],
        "duplicate": status["duplicate"] + len(late),
        "rejected": status["rejected"],
    }
    blocks = [_block_record(dataset, plan.number, block) for block in range(plan.blocks)]
    snapshot = write_snapshot(
        dataset,
        snapshots,
        ids=ids[kept],
        hashes=hashes[kept],
        removed=np.array(sorted([*late, *replaced]), np.int64),
        record={
            "counts": counts,
            "rejected": dict(reasons),
            "duplicate_of": {str(key): late[key] for key in sorted(late)},
            "replaced": {str(key): replaced[key] for key in sorted(replaced)},
            "blocks": blocks,
            "sources": plan.sources,
            "mlflow_run_id": mlflow_run_id,
        },
    )
    return snapshot, complaint


def write_snapshot(
    dataset: Location,
    snapshots: Sequence[Mapping[str, Any]],
    *,
    ids: Int64Array,
    hashes: Any,
    removed: Int64Array,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Append a snapshot to the chain: from then on every reader sees it."""
    number, parent = len(snapshots) + 1, str(snapshots[-1]["digest"]) if snapshots else ""
    config = read_json(dataset / "dataset.json")["config"]
    snapshot = {
        "format_version": FORMAT_VERSION,
        "number": number,
        "parent": parent,
        "digest": snapshot_digest(parent, config, ids, hashes, removed),
        "removed": removed.tolist(),
        **record,
        "versions": library_versions(),
    }
    write_json(snapshot_path(dataset, number), snapshot)
    return snapshot


def split_counts(dataset: Location, ids: Int64Array) -> Counter[str]:
    """How many of some images are in each split."""
    return _counts(rows_of(dataset, ids, ["split"]).column("split"))


def _counts(column: Any) -> Counter[str]:
    pairs = pc.value_counts(column.drop_null())
    return Counter({item["values"].as_py(): item["counts"].as_py() for item in pairs})


def _block_record(dataset: Location, number: int, block: int) -> dict[str, Any]:
    """Name, bytes and checksum of a block that is there and whole."""
    place = block_path(dataset, number, block)
    open_block(place, read_config(dataset))  # One that was lost or cut short since must not be committed.
    metadata = open_parquet(manifest_path(dataset, number, block)).schema_arrow.metadata or {}
    recorded = json.loads(metadata.get(b"glo", b"{}")).get("block", {})
    size = place.size()
    if size != recorded.get("bytes", size):
        raise UserError(f"{place}: {size} bytes, where {recorded['bytes']} were written; delete it and its manifest")
    return {"name": place.name, "bytes": size, **recorded}


def _late_duplicates(ids: Int64Array, hashes: Any) -> dict[int, int]:
    """Images whose bytes a lower id of another block of the same plan has: id -> that lower id."""
    first = ids[HashIndex(halves(hashes)).look_up(halves(hashes))]
    late = np.flatnonzero(first != ids)
    return dict(zip(ids[late].tolist(), first[late].tolist(), strict=True))


def _replaced(dataset: Location, plan: Plan, manifest: Any, snapshots: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Live images whose file now holds another one, and whose bytes no other file has: old id -> new id."""
    previous = _previous_ids(dataset)
    readable = manifest.filter(pc.not_equal(manifest.column("status"), "rejected")).column("image_id").to_pylist()
    candidates = {new: _chain(previous, new) for new in readable if new in previous}
    olds = np.array([old for chain in candidates.values() for old in chain], np.int64)
    live = live_ids(dataset, olds, snapshots)
    held: set[int] = set()
    for table in read_parts(dataset, ["duplicate_of"]):
        held.update(table.column("duplicate_of").drop_null().to_pylist())
    held.update(int(i) for snapshot in snapshots for i in snapshot["duplicate_of"].values())
    replaced = {}
    for new, chain in candidates.items():
        newest = next((old for old in chain if old in live), None)
        if newest is not None and newest not in held:
            replaced[newest] = new
    return replaced


def _previous_ids(dataset: Location) -> dict[int, int]:
    """Of every id dealt to a file whose bytes changed, the id that the file had before."""
    pairs: dict[int, int] = {}
    for name in plan_names(dataset):
        file = open_parquet(dataset / "plans" / name)
        if "previous_id" in file.schema_arrow.names:
            table = file.read(["image_id", "previous_id"])
            table = table.filter(pc.is_valid(table.column("previous_id")))
            pairs |= dict(zip(*(table.column(n).to_pylist() for n in table.column_names), strict=True))
    return pairs


def _chain(previous: Mapping[int, int], image_id: int) -> list[int]:
    """The earlier ids of a file, newest first."""
    chain = []
    while image_id in previous:
        image_id = previous[image_id]
        chain.append(image_id)
    return chain


def _without_image(plan: Plan, manifest: Any, earlier: EarlierSnapshots) -> str:
    """The complaint about the first input that never gave an image, or ""."""
    taken = manifest.filter(pc.is_null(manifest.column("reason"))).column("source").unique().to_pylist()
    for source in manifest.column("source").unique().to_pylist():
        if source not in taken and source not in earlier.sources:
            reasons = _counts(manifest.filter(pc.equal(manifest.column("source"), source)).column("reason"))
            shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
            return (
                f"input={_input(plan, source)}: none of its {reasons.total()} new files is an image ({shown}); "
                "give a folder of image files"
            )
    return ""


def _input(plan: Plan, source: str) -> Location:
    """A source as it was given: its base folder, or the container or list that lies there."""
    base = Location(plan.sources[source])
    return base / source if (base / source).exists() else base


def _discard(dataset: Location, plan: Plan) -> None:
    """Forget a plan in which nothing is an image, so that the mistake leaves no trace."""
    for block in range(plan.blocks):
        manifest_path(dataset, plan.number, block).unlink()
        block_path(dataset, plan.number, block).unlink()
    plan.path.unlink()
