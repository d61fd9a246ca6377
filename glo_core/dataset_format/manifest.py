"""The manifest of a dataset, one row for every file met, and where its parts lie."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.arrow_files import open_parquet, read_parquet
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.location import Location
from glo_core.dataset_format.blocks import BlockEntry
from glo_core.dataset_format.records import DatasetFile, parse_schema
from glo_core.dataset_format.snapshots import Snapshot, removed_ids

MANIFEST = pa.schema(
    [
        ("image_id", pa.int64()),
        ("source", pa.string()),
        ("path", pa.binary()),
        ("member", pa.binary()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("pixel_hash", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("block", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("duplicate_of", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ManifestRecord(DatasetFile):
    """What the schema of a part of the manifest holds."""

    format = "glo-manifest"
    plan_id: str
    """Of the plan that the part was made from"""
    block: BlockEntry
    """The block that was written with the part"""


_PART = re.compile(r"(\d{6,})-\d{5,}\.parquet")


def part_name(number: int, block: int) -> str:
    """Name of plan `number`'s part `block`, without its ending."""
    return f"{number:06d}-{block:05d}"


def manifest_path(dataset: Location, number: int, block: int) -> Location:
    """The part of the manifest that describes block `block` of plan `number`."""
    return dataset / "manifest" / f"{part_name(number, block)}.parquet"


def block_path(dataset: Location, number: int, block: int) -> Location:
    """The Arrow file of block `block` of plan `number`."""
    return dataset / "blocks" / f"{part_name(number, block)}.arrow"


def part_names(dataset: Location, *, before: int | None = None, of: int | None = None) -> list[str]:
    """Names of the parts that are there, in the order of ids.

    Args:
        before: leave out the parts of this plan and of later ones.
        of: leave out the parts of all plans but this one.
    """
    names = []
    for name in (dataset / "manifest").names():
        if match := _PART.fullmatch(name):
            number = int(match.group(1))
            if (before is None or number < before) and (of is None or number == of):
                names.append(name)
    return names


def open_part(dataset: Location, name: str) -> tuple[Any, ManifestRecord]:
    """The part `name` as a `pyarrow.parquet.ParquetFile`, and its record.

    Raises:
        DatasetError: if it is missing, not whole, or of another format or version.
    """
    place = dataset / "manifest" / name
    file = open_parquet(place, DatasetError)
    return file, parse_schema(file.schema_arrow.metadata, ManifestRecord, place)


def read_parts(
    dataset: Location, columns: Sequence[str], *, before: int | None = None, of: int | None = None
) -> Iterator[Any]:
    """The manifest's rows, a `pyarrow.Table` for each part, in the order of ids; see `part_names`.

    Raises:
        DatasetError: if a part is not whole, or of another format or version.
    """
    for name in part_names(dataset, before=before, of=of):
        place = dataset / "manifest" / name
        table = read_parquet(place, columns, DatasetError)
        parse_schema(table.schema.metadata, ManifestRecord, place)
        yield table


def rows_of(dataset: Location, ids: Int64Array, columns: Sequence[str]) -> Any:
    """The rows of `ids` (int64 `[n]`), as a `pyarrow.Table` of image_id and `columns`, in the order of ids."""
    names, id_column = ["image_id", *columns], pa.array(ids)
    parts = read_parts(dataset, names) if len(ids) else iter(())
    tables = [table.filter(pc.is_in(table.column("image_id"), id_column)) for table in parts]
    empty = pa.schema([MANIFEST.field(name) for name in names]).empty_table()
    return pa.concat_tables([empty, *tables])


# ---------------------------------------------------------------- images by id and by name


def live_ids(dataset: Location, ids: Int64Array, snapshots: Sequence[Snapshot]) -> set[int]:
    """Those of `ids` (int64 `[n]`) that are images of the dataset and not removed by `snapshots`."""
    rows = rows_of(dataset, ids, ["status"])
    images = rows.filter(pc.equal(rows.column("status"), "image")).column("image_id").to_pylist()
    return set(images).difference(removed_ids(snapshots).tolist())


def find_ids(
    dataset: Location, names: Sequence[str], snapshots: Sequence[Snapshot], *, removed_too: bool = False
) -> Int64Array:
    """The ids of live images by their names, int64 `[n]`, ascending.

    Args:
        names: each an id, source/path, or source/path!member.
        removed_too: accept names of images that are removed already, and leave these images out.

    Raises:
        UserError: if a name is of no image of the dataset; it says why.
    """
    ids_by_name = {name: [int(name)] for name in names if name.isdecimal() and int(name) < 1 << 63}
    ids_by_name |= _ids_of_paths(dataset, [name for name in names if name not in ids_by_name])
    candidates = np.array([image_id for ids in ids_by_name.values() for image_id in ids], np.int64)
    live = live_ids(dataset, candidates, snapshots)
    accepted = live_ids(dataset, candidates, ()) if removed_too else live
    for name in names:
        if accepted.isdisjoint(ids_by_name[name]):
            raise UserError(f"{name}: {_why_no_image(dataset, ids_by_name[name], snapshots)}")
    newest = [max(live.intersection(ids_by_name[name]), default=-1) for name in names]
    return np.array(sorted({image_id for image_id in newest if image_id >= 0}), np.int64)


def _why_no_image(dataset: Location, ids: Sequence[int], snapshots: Sequence[Snapshot]) -> str:
    rows = rows_of(dataset, np.array(ids[-1:], np.int64), ["status", "reason", "duplicate_of"]).to_pylist()
    if not rows:
        return f"no image of {dataset}; give an id, or source/path as the manifest has them"
    row = rows[0]
    if row["status"] == "rejected":
        return f"is no image, since its file was rejected: {row['reason']}"
    if row["status"] == "duplicate":
        return f"is no image of its own, but a duplicate of image {row['duplicate_of']}; give that id"
    for snapshot in snapshots:
        for relation, successors in (("duplicate_of", snapshot.duplicate_of), ("replaced", snapshot.replaced)):
            if (other := successors.get(row["image_id"])) is not None:
                return f"is no image any more: image {other} has taken its place ({relation}); give that id"
    return "was removed from the dataset"


def _ids_of_paths(dataset: Location, names: Sequence[str]) -> dict[str, list[int]]:
    """Every id that each path ever had, oldest first."""
    ids: dict[str, list[int]] = {name: [] for name in names}
    for table in read_parts(dataset, ["image_id", "source", "path", "member"]) if names else ():
        for name in names:
            source, _, path = (os.fsencode(part) for part in name.partition("/"))
            container, _, member = path.rpartition(b"!")
            members = table.column("member")
            is_file = pc.and_(pc.equal(table.column("path"), path), pc.is_null(members))
            is_member = pc.and_(
                pc.equal(table.column("path"), container), pc.fill_null(pc.equal(members, member), False)
            )
            of_source = pc.equal(table.column("source"), os.fsdecode(source))
            ids[name] += table.filter(pc.and_(of_source, pc.or_(is_file, is_member))).column("image_id").to_pylist()
    return ids
