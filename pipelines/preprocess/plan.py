"""The plan of a preprocessing run: which file gets which id, committed before anything is decoded.

    list the sources -> what is new, changed, vanished -> ids in hashed order -> plans/N.parquet

Ids are dealt in the order of a seeded hash of source and path, numbered on from the last, so that they depend
neither on the order of a directory listing nor on what is found in the files.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.files import atomic_write, open_parquet
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.hash_index import halves, key_column
from pipelines.preprocess.diff import NAMES_SHOWN, NEW, Diff, DiffStats, names_of
from pipelines.preprocess.file_index import FileIndex, write_touched
from pipelines.preprocess.sources import find_sources

BLOCK_BYTES, MAX_BLOCK_ROWS = 128 << 20, 1 << 16
"""Pixels of a block at most, and images: a task's memory does not grow with the number of files."""
MIN_BLOCK_ROWS, BLOCKS_PER_PLAN = 256, 16
"""A small plan is cut into this many blocks, so that every core has work, but not into smaller ones."""

PLAN = pa.schema(
    [
        ("image_id", pa.int64()),
        ("source", pa.string()),
        ("path", pa.binary()),
        ("member", pa.binary()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("key", pa.binary(16)),
        ("held_out", pa.bool_()),
        ("previous_id", pa.int64()),
    ]
)


class Plan(NamedTuple):
    """One committed plan: which file gets which id."""

    number: int
    path: Location
    rows: int
    blocks: int
    sources: dict[str, str]
    """Base folder of each source of the dataset so far"""
    inputs: list[str]
    """Inputs that the plan was made for"""
    on_change: str
    """"keep" or "replace" the images of files whose bytes changed"""
    survey: DiffStats

    def block_rows(self, block: int) -> int:
        return int(open_parquet(self.path).metadata.row_group(block).num_rows)


def plan_path(dataset: Location, number: int) -> Location:
    return dataset / "plans" / f"{number:06d}.parquet"


def plan_names(dataset: Location) -> list[str]:
    return [name for name in (dataset / "plans").names() if not name.startswith(".")]


def read_plan(path: Location) -> Plan:
    file = open_parquet(path)
    metadata = json.loads(file.schema_arrow.metadata[b"glo"])
    return Plan(
        number=int(path.name.removesuffix(".parquet")),
        path=path,
        rows=file.metadata.num_rows,
        blocks=file.metadata.num_row_groups,
        sources=metadata["sources"],
        inputs=metadata["inputs"],
        on_change=metadata["on_change"],
        survey=DiffStats(**metadata["survey"]),
    )


def pending_plan(dataset: Location, snapshots: int) -> Plan | None:
    """The plan of an interrupted run, if there is one."""
    path = plan_path(dataset, snapshots + 1)
    return read_plan(path) if path.exists() else None


def make_plan(
    dataset: Location,
    number: int,
    config: ResolvedDatasetConfig,
    inputs: Sequence[Location],
    *,
    on_change: str = "keep",
    retry: Int64Array,
) -> tuple[DiffStats, Plan | None]:
    """List `inputs`, deal ids to what is new there, and commit that; no plan if nothing is.

    Args:
        number: of the plan.
        on_change: recorded in the plan.
        retry: ids of rejected files that are to be tried again.

    Raises:
        UserError: if an input is missing or holds no file.
    """
    plans = plan_names(dataset)
    names = dict(read_plan(dataset / "plans" / plans[-1]).sources) if plans else {}
    sources = find_sources(inputs, names)
    names |= {source.name: str(source.base) for source in sources}
    numbers: dict[str, int] = {}
    known = FileIndex.read(dataset, plans, numbers)
    known.forget(retry)
    listing = Diff(dataset, plans, config.seed, known, numbers, frozenset(retry.tolist()))
    for source in sources:
        listing.add(source)
    gone = known.vanished([numbers[source.name] for source in sources])
    survey = listing.survey
    survey.vanished += len(gone)
    survey.vanished_names += names_of(dataset, gone[:NAMES_SHOWN])
    new = pa.concat_tables(listing.new) if listing.new else NEW.empty_table()
    next_id, touched = known.next_id, listing.touched
    del listing, known
    if not len(new):
        write_touched(dataset, touched)
        return survey, None
    metadata = {
        "sources": names,
        "inputs": [str(source.given) for source in sources],
        "on_change": on_change,
        "survey": dataclasses.asdict(survey),
    }
    path = plan_path(dataset, number)
    _write(path, new, list(numbers), next_id, config, metadata)
    write_touched(dataset, touched)  # After the plan: what it says is known must be in a plan.
    return survey, read_plan(path)


def _write(
    path: Location,
    new: Any,
    sources: Sequence[str],
    next_id: int,
    config: ResolvedDatasetConfig,
    metadata: dict[str, Any],
) -> None:
    """Put the new files in order, number them, and write a row group for each block."""
    keys, order_keys = (halves(key_column(new.column(name))) for name in ("key", "order"))
    order = np.lexsort((order_keys[:, 1], order_keys[:, 0], keys[:, 1], keys[:, 0]))
    # The low half of the same 128 bits: independent of the order, and of later folders.
    low = np.where(order_keys.any(axis=1), order_keys[:, 1], keys[:, 1])
    held_out = low / 2.0**64 < config.holdout
    del keys, order_keys, low
    new = new.combine_chunks()
    blocks = min(max(len(new) // MIN_BLOCK_ROWS, 1), BLOCKS_PER_PLAN)
    rows = min(max(BLOCK_BYTES // config.image_bytes, 1), MAX_BLOCK_ROWS, -(-len(new) // blocks))
    schema = PLAN.with_metadata({"glo": json.dumps(metadata)})
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
        for first in range(0, len(new), rows):
            some = order[first : first + rows]
            table = new.take(some)
            columns = {name: table.column(name) for name in PLAN.names if name in NEW.names}
            columns["source"] = pc.take(pa.array(sources), table.column("source"))
            columns["image_id"] = pa.array(np.arange(next_id + first, next_id + first + len(some)))
            columns["held_out"] = pa.array(held_out[some])
            file.write_table(pa.table([columns[name] for name in PLAN.names], schema=schema), row_group_size=rows)
