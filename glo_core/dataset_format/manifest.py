"""The manifest of a dataset, one row for every file met, and where its parts lie."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.errors import UserError
from glo_core.common.files import read_parquet
from glo_core.common.location import Location

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


def part_name(number: int, block: int) -> str:
    """Name of plan `number`'s part `block`, without its ending."""
    return f"{number:06d}-{block:05d}"


def manifest_path(dataset: Location, number: int, block: int) -> Location:
    return dataset / "manifest" / f"{part_name(number, block)}.parquet"


def block_path(dataset: Location, number: int, block: int) -> Location:
    return dataset / "blocks" / f"{part_name(number, block)}.arrow"


def part_names(dataset: Location, *, before: int | None = None, of: int | None = None) -> list[str]:
    """Names of the parts that are there, in the order of ids; of the plans before one, or of one plan."""
    found = []
    for name in (dataset / "manifest").names():
        if not name.startswith("."):
            number = int(name.split("-")[0])
            if (before is None or number < before) and (of is None or number == of):
                found.append(name)
    return found


def read_parts(
    dataset: Location, columns: Sequence[str], *, before: int | None = None, of: int | None = None
) -> Iterator[Any]:
    """The manifest's rows, a `pyarrow.Table` for each part, in the order of ids; see `part_names`."""
    for name in part_names(dataset, before=before, of=of):
        yield read_parquet(dataset / "manifest" / name, columns)


def rows_of(dataset: Location, ids: Int64Array, columns: Sequence[str]) -> Any:
    """The rows of some ids (int64 `[n]`), as a `pyarrow.Table` in the order of ids."""
    names, wanted = ["image_id", *columns], pa.array(ids)
    parts = read_parts(dataset, names) if len(ids) else iter(())
    found = [table.filter(pc.is_in(table.column("image_id"), wanted)) for table in parts]
    return pa.concat_tables([pa.schema([MANIFEST.field(name) for name in names]).empty_table(), *found])


# ---------------------------------------------------------------- images by id and by name


def live_ids(dataset: Location, ids: Int64Array, snapshots: Sequence[Mapping[str, Any]]) -> set[int]:
    """Those of `ids` that are images of the dataset."""
    rows = rows_of(dataset, ids, ["status"])
    images = rows.filter(pc.equal(rows.column("status"), "image")).column("image_id").to_pylist()
    return set(images) - {i for snapshot in snapshots for i in snapshot["removed"]}


def find_ids(
    dataset: Location, names: Sequence[str], snapshots: Sequence[Mapping[str, Any]], *, removed_too: bool = False
) -> Int64Array:
    """The ids (int64, ascending) of live images that `names` give as ids or as source/path or source/path!member.

    Args:
        removed_too: accept images that are removed already, and leave them out.

    Raises:
        UserError: naming the first that is none.
    """
    wanted = {name: [int(name)] for name in names if name.isdecimal()}
    wanted |= _ids_of_paths(dataset, [name for name in names if name not in wanted])
    requested = np.array([image_id for ids in wanted.values() for image_id in ids], np.int64)
    live = live_ids(dataset, requested, snapshots)
    known = live_ids(dataset, requested, ()) if removed_too else live
    for name in names:
        if not known.intersection(wanted[name]):
            raise UserError(f"{name}: {_why_no_image(dataset, wanted[name], snapshots)}")
    newest = [max(live.intersection(wanted[name]), default=-1) for name in names]
    return np.array(sorted({image_id for image_id in newest if image_id >= 0}), np.int64)


def _why_no_image(dataset: Location, ids: Sequence[int], snapshots: Sequence[Mapping[str, Any]]) -> str:
    rows = rows_of(dataset, np.array(ids[-1:], np.int64), ["status", "reason", "duplicate_of"]).to_pylist()
    if not rows:
        return f"no image of {dataset}; give an id, or source/path as the manifest has them"
    row = rows[0]
    if row["status"] == "rejected":
        return f"is no image, since its file was rejected: {row['reason']}"
    if row["status"] == "duplicate":
        return f"is no image of its own, but a duplicate of image {row['duplicate_of']}; give that id"
    for snapshot in snapshots:
        for record in ("duplicate_of", "replaced"):
            if (other := snapshot.get(record, {}).get(str(row["image_id"]))) is not None:
                return f"is no image any more: image {other} has taken its place ({record}); give that id"
    return "was removed from the dataset"


def _ids_of_paths(dataset: Location, names: Sequence[str]) -> dict[str, list[int]]:
    """Every id that each path ever had."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for table in read_parts(dataset, ["image_id", "source", "path", "member"]) if names else ():
        for name in names:
            source, _, path = (os.fsencode(part) for part in name.partition("/"))
            whole, _, member = path.rpartition(b"!")
            column = table.column("member")
            alone = pc.and_(pc.equal(table.column("path"), path), pc.is_null(column))
            inside = pc.and_(pc.equal(table.column("path"), whole), pc.fill_null(pc.equal(column, member), False))
            here = pc.and_(pc.equal(table.column("source"), os.fsdecode(source)), pc.or_(alone, inside))
            found[name] += table.filter(here).column("image_id").to_pylist()
    return found
