"""The snapshot: one small file, written last, that makes a plan's images part of the dataset."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.arrow_files import read_parquet
from glo_core.common.errors import ConfigError, DatasetError, UserError
from glo_core.common.location import Location
from glo_core.common.records import write_record
from glo_core.dataset_format.blocks import BlockEntry, open_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.hash_index import HashIndex, halves, key_column
from glo_core.dataset_format.manifest import (
    block_path,
    live_ids,
    manifest_path,
    open_part,
    part_name,
    read_parts,
    rows_of,
)
from glo_core.dataset_format.records import read_config
from glo_core.dataset_format.snapshots import Snapshot, SnapshotCounts, snapshot_digest, snapshot_path
from pipelines.common.versions import library_versions
from pipelines.preprocess.content_index import CommittedContents
from pipelines.preprocess.plan import OnChange, Plan, discard_plan, no_training, open_plans


def commit(
    dataset: Location,
    plan: Plan,
    snapshots: Sequence[Snapshot],
    committed: CommittedContents,
    mlflow_run_id: str | None,
    *,
    on_change: OnChange,
) -> tuple[Snapshot, str]:
    """Write the snapshot of a plan whose blocks are done.

    Args:
        on_change: whether the images of files whose bytes changed stay or go.

    Returns:
        The snapshot, and a complaint about an input that never gave an image ("" if there is none).

    Raises:
        UserError: if nothing in the plan is an image, or none to train on, which leaves no trace; or a block is gone.
    """
    columns = ["image_id", "source", "content_hash", "pixel_hash", "split", "status", "reason"]
    blocks = range(len(plan.block_rows))
    parts = [read_parquet(manifest_path(dataset, plan.number, block), columns, DatasetError) for block in blocks]
    manifest = pa.concat_tables(parts)
    images = manifest.filter(pc.equal(manifest.column("status"), "image"))
    complaint = _input_without_image(plan, manifest, committed)
    if complaint and not len(images):
        discard_plan(dataset, plan.number)  # The mistake leaves no trace.
        raise UserError(complaint)
    config = read_config(dataset)
    ids, hashes = images.column("image_id").to_numpy(), key_column(images.column("content_hash"))
    # Files of equal bytes have equal pixels too.
    duplicate_of = _late_duplicates(ids, key_column(images.column("pixel_hash")))
    replaced = _replaced(dataset, plan, manifest, snapshots) if on_change == "replace" else {}
    # bool [images of the plan]
    is_first = ~np.isin(ids, list(duplicate_of))
    if is_first.any() and not _trains(snapshots, images.filter(pa.array(is_first))):
        discard_plan(dataset, plan.number)  # The holdout is fixed with the dataset: nothing of it may stay.
        raise ConfigError(no_training(config, int(is_first.sum())))
    snapshot = write_snapshot(
        dataset,
        snapshots,
        config,
        ids=ids[is_first],
        hashes=hashes[is_first],
        removed=[*duplicate_of, *replaced],
        counts=_count(dataset, manifest, duplicate_of, replaced),
        rejected=dict(_value_counts(manifest.column("reason"))),
        duplicate_of=duplicate_of,
        replaced=replaced,
        blocks=[_block_entry(dataset, config, plan, block) for block in blocks],
        sources=plan.record.sources,
        mlflow_run_id=mlflow_run_id,
    )
    return snapshot, complaint


def _trains(snapshots: Sequence[Snapshot], images: Any) -> bool:
    """Whether a dataset with `images`, rows of the manifest, and those of `snapshots` has any to train on."""
    return sum(snapshot.counts.train for snapshot in snapshots) > 0 or bool(
        pc.any(pc.equal(images.column("split"), "train")).as_py()
    )


def write_snapshot(
    dataset: Location,
    snapshots: Sequence[Snapshot],
    config: ResolvedDatasetConfig,
    *,
    ids: Int64Array,
    hashes: UInt8Array,
    removed: Collection[int],
    counts: SnapshotCounts,
    sources: dict[str, str],
    rejected: dict[str, int] | None = None,
    duplicate_of: Mapping[int, int] | None = None,
    replaced: Mapping[int, int] | None = None,
    blocks: Sequence[BlockEntry] = (),
    mlflow_run_id: str | None = None,
) -> Snapshot:
    """Append a snapshot to the chain `snapshots`: from then on every reader sees it.

    Args:
        ids: of its images that are no duplicates, int64 `[n]`, ascending.
        hashes: content hash of each of these images, uint8 `[n, 16]`.
        removed: ids that every reader skips from then on.

    The other arguments are fields of `Snapshot`.
    """
    number, parent = len(snapshots) + 1, snapshots[-1].digest if snapshots else ""
    removed = sorted(removed)
    if snapshot_path(dataset, number).exists():
        raise DatasetError(f"{dataset}: another writer has committed snapshot {number}; run the same command again")
    snapshot = Snapshot(
        number=number,
        parent=parent,
        digest=snapshot_digest(parent, config, ids, hashes, np.array(removed, np.int64)),
        counts=counts,
        rejected=rejected or {},
        removed=tuple(removed),
        duplicate_of=dict(sorted((duplicate_of or {}).items())),
        replaced=dict(sorted((replaced or {}).items())),
        blocks=tuple(blocks),
        sources=sources,
        mlflow_run_id=mlflow_run_id,
        versions=library_versions(),
    )
    write_record(snapshot_path(dataset, number), snapshot)
    return snapshot


def _count(
    dataset: Location, manifest: Any, duplicate_of: Mapping[int, int], replaced: Mapping[int, int]
) -> SnapshotCounts:
    """What a plan's rows of the manifest change; the images that are replaced count below zero."""
    images = manifest.filter(pc.equal(manifest.column("status"), "image"))
    ids, status = images.column("image_id").to_numpy(), _value_counts(manifest.column("status"))
    splits = _value_counts(images.filter(pa.array(~np.isin(ids, list(duplicate_of)))).column("split"))
    splits.subtract(split_counts(dataset, np.array(list(replaced), np.int64)))
    return SnapshotCounts(
        files=len(manifest),
        train=splits["train"],
        holdout=splits["holdout"],
        duplicate=status["duplicate"] + len(duplicate_of),
        rejected=status["rejected"],
    )


def split_counts(dataset: Location, ids: Int64Array) -> Counter[str]:
    """How many of the images `ids` (int64 `[n]`) are in each split."""
    return _value_counts(rows_of(dataset, ids, ["split"]).column("split"))


def _value_counts(column: Any) -> Counter[str]:
    pairs = pc.value_counts(column.drop_null())
    return Counter({pair["values"].as_py(): pair["counts"].as_py() for pair in pairs})


def _block_entry(dataset: Location, config: ResolvedDatasetConfig, plan: Plan, block: int) -> BlockEntry:
    """The entry of a block that is there and whole: one that was lost since must not be committed."""
    place = block_path(dataset, plan.number, block)
    open_block(place, config)
    _, record = open_part(dataset, f"{part_name(plan.number, block)}.parquet")
    if record.plan_id != plan.record.plan_id:
        raise DatasetError(f"{place}: another writer has written it; run the same command again")
    size = place.size()
    if size != record.block.bytes:
        raise DatasetError(
            f"{place}: {size} bytes, where {record.block.bytes} were written; delete it and its part of the manifest"
        )
    return record.block


def _late_duplicates(ids: Int64Array, hashes: UInt8Array) -> dict[int, int]:
    """Images whose pixels a lower id of another block of the same plan has: id -> that lower id.

    Args:
        ids: int64 `[n]`, ascending.
        hashes: of the pixels, uint8 `[n, 16]`.
    """
    keys = halves(hashes)
    # [n]: the lowest id with the same pixels
    first = ids[HashIndex(keys).look_up(keys)]
    late = np.flatnonzero(first != ids)
    return dict(zip(ids[late].tolist(), first[late].tolist(), strict=True))


def _replaced(dataset: Location, plan: Plan, manifest: Any, snapshots: Sequence[Snapshot]) -> dict[int, int]:
    """Live images whose file now holds another one, and whose pixels no other file has: old id -> new id."""
    previous = _previous_ids(dataset)
    readable = manifest.filter(pc.not_equal(manifest.column("status"), "rejected")).column("image_id").to_pylist()
    earlier_ids = {new: _earlier_ids(previous, new) for new in readable if new in previous}
    live = live_ids(dataset, np.array([old for ids in earlier_ids.values() for old in ids], np.int64), snapshots)
    has_copies: set[int] = set()
    for table in read_parts(dataset, ["duplicate_of"]):
        has_copies.update(table.column("duplicate_of").drop_null().to_pylist())
    has_copies.update(original for snapshot in snapshots for original in snapshot.duplicate_of.values())
    replaced = {}
    for new, ids in earlier_ids.items():
        newest = next((old for old in ids if old in live), None)
        if newest is not None and newest not in has_copies:
            replaced[newest] = new
    return replaced


def _previous_ids(dataset: Location) -> dict[int, int]:
    """Of every id assigned to a file whose bytes changed, the id that the file had before."""
    previous: dict[int, int] = {}
    for file, _ in open_plans(dataset):
        table = file.read(["image_id", "previous_id"])
        table = table.filter(pc.is_valid(table.column("previous_id")))
        previous |= dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return previous


def _earlier_ids(previous: Mapping[int, int], image_id: int) -> list[int]:
    """The earlier ids of a file, newest first."""
    ids = []
    while image_id in previous:
        image_id = previous[image_id]
        ids.append(image_id)
    return ids


def _input_without_image(plan: Plan, manifest: Any, committed: CommittedContents) -> str:
    """The complaint about the first input that never gave an image, or ""."""
    accepted = manifest.filter(pc.is_null(manifest.column("reason"))).column("source").unique().to_pylist()
    for source in manifest.column("source").unique().to_pylist():
        if source not in accepted and source not in committed.sources:
            reasons = _value_counts(manifest.filter(pc.equal(manifest.column("source"), source)).column("reason"))
            most_common = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
            return (
                f"`input` (={_input(plan, source)}): none of its {reasons.total()} new files is an image "
                f"({most_common}); give a folder of image files"
            )
    return ""


def _input(plan: Plan, source: str) -> Location:
    """A source as it was named: its base folder, or the container or list that lies there."""
    base = Location(plan.record.sources[source])
    return base / source if (base / source).exists() else base
