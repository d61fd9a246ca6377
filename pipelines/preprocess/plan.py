"""The plan of a preprocessing run: which file gets which id, committed before anything is decoded.

    list the sources -> what is new, changed, vanished -> ids in hashed order -> plans/N.parquet

Ids are assigned in the order of a seeded hash of source and path, numbered on from the last, so that they depend
neither on the order of a directory listing nor on what is in the files.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.arrow_files import open_parquet
from glo_core.common.digests import DIGEST_BYTES, canonical_json, new_hasher
from glo_core.common.errors import ConfigError, DatasetError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.hash_index import Keys, halves, key_column
from glo_core.dataset_format.manifest import manifest_path, open_part, part_name
from glo_core.dataset_format.records import DatasetFile, parse_schema, schema_metadata
from pipelines.preprocess.diff import NEW_FILES, Diff
from pipelines.preprocess.diff_stats import NAMES_SHOWN, DiffStats, names_of_ids
from pipelines.preprocess.file_index import FileIndex, read_stat_cache, update_stat_cache
from pipelines.preprocess.guards import SourceChanges, holds_known_files, refuse_mass_change
from pipelines.preprocess.holdout import choose_held_out
from pipelines.preprocess.sources import Source, find_sources

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


_PART_FILE, _BLOCK_FILE = re.compile(r"(\d+)-\d+\.parquet"), re.compile(r"\.?(\d+)-\d+\.(?:arrow|begun)")

OnChange = Literal["keep", "replace"]


@dataclass(frozen=True, kw_only=True)
class PlanRecord(DatasetFile):
    """What the schema of a plan holds."""

    format = "glo-plan"
    plan_id: str
    """Digest of what the plan assigns, which every part of the manifest repeats; see `_plan_id`"""
    sources: dict[str, str]
    """Base folder of each source of the dataset so far"""
    inputs: tuple[str, ...]
    """Inputs that the plan was made for"""
    on_change: OnChange
    """Whether the images of files whose bytes changed stay or go"""
    stats: DiffStats
    """What listing the inputs found"""


class Plan(NamedTuple):
    """One committed plan: which file gets which id."""

    number: int
    path: Location
    rows: int
    """Files and members that get an id"""
    block_rows: tuple[int, ...]
    """Rows of each block"""
    record: PlanRecord


def plan_path(dataset: Location, number: int) -> Location:
    """The file of plan `number`, from 1 on."""
    return dataset / "plans" / f"{number:06d}.parquet"


def open_plans(dataset: Location) -> list[tuple[Any, PlanRecord]]:
    """Every plan of `dataset`, oldest first; see `open_plan`."""
    return [open_plan(dataset / "plans" / name) for name in (dataset / "plans").names() if not name.startswith(".")]


def open_plan(path: Location) -> tuple[Any, PlanRecord]:
    """The plan in the file `path` as a `pyarrow.parquet.ParquetFile`, and its record.

    Raises:
        DatasetError: if the file is missing, not whole, or of another format or version.
    """
    file = open_parquet(path, DatasetError)
    return file, parse_schema(file.schema_arrow.metadata, PlanRecord, path)


def read_plan(path: Location) -> Plan:
    """The plan in the file `path`, without its rows; errors as of `open_plan`."""
    file, record = open_plan(path)
    metadata = file.metadata
    return Plan(
        number=int(path.name.removesuffix(".parquet")),
        path=path,
        rows=metadata.num_rows,
        block_rows=tuple(metadata.row_group(block).num_rows for block in range(metadata.num_row_groups)),
        record=record,
    )


def is_done(dataset: Location, plan: Plan, block: int) -> bool:
    """Whether block `block` was decoded from this very plan, and not from another one of its number."""
    if not manifest_path(dataset, plan.number, block).exists():
        return False
    _, record = open_part(dataset, f"{part_name(plan.number, block)}.parquet")
    return record.plan_id == plan.record.plan_id


def pending_plan(dataset: Location, snapshots: int) -> Plan | None:
    """The plan of an interrupted run, if there is one.

    Args:
        snapshots: how many are committed.

    Raises:
        DatasetError: if it is damaged.
    """
    path = plan_path(dataset, snapshots + 1)
    try:
        return read_plan(path) if path.exists() else None
    except DatasetError as error:
        raise DatasetError(f"{error}, or give `discard_plan`: nothing of it is in the dataset yet") from None


def discard_plan(dataset: Location, number: int) -> None:
    """Forget plan `number`, which no snapshot has committed: its parts of the manifest, its blocks, and the plan last.

    No reader looks at images that no snapshot lists, so that the ids of the plan may be assigned again. An
    interruption leaves a plan that is still pending. Nothing of the plan is read, since it may be damaged.
    """
    for place in uncommitted_files(dataset, number):
        place.unlink()
    plan_path(dataset, number).unlink()


def uncommitted_files(dataset: Location, number: int) -> list[Location]:
    """The parts of the manifest, the blocks and the marks of attempts of plan `number` and of later ones."""
    return [
        dataset / folder / name
        for folder, pattern in (("manifest", _PART_FILE), ("blocks", _BLOCK_FILE))
        for name in (dataset / folder).names()
        if (match := pattern.fullmatch(name)) and int(match[1]) >= number
    ]


def make_plan(
    dataset: Location,
    number: int,
    config: ResolvedDatasetConfig,
    inputs: Sequence[Location],
    *,
    on_change: OnChange = "keep",
    retry: Int64Array,
    list_stores: Sequence[Location] = (),
    require_lease: Callable[[], None],
    yes: bool = False,
) -> tuple[DiffStats, Plan | None]:
    """List `inputs`, assign ids to what is new there, and commit that; no plan if nothing is new.

    Args:
        number: of the plan.
        on_change: recorded in the plan.
        retry: ids of rejected files that are to be tried again, int64 `[n]`.
        list_stores: stores that lines of a list may name beside those of `inputs`.
        require_lease: called before the plan is committed; raises if another writer has the dataset now.
        yes: go on although many files of a source changed or are gone.

    Raises:
        UserError: if an input is missing or holds no file, too much of it changed, or the holdout takes all files of a
            new dataset.
    """
    plans = open_plans(dataset)
    files, bases = [file for file, _ in plans], dict(plans[-1][1].sources) if plans else {}
    sources = find_sources(
        inputs, bases, list_stores, functools.partial(holds_known_files, dataset, files, config.max_bytes)
    )
    bases |= {source.name: str(source.base) for source in sources}
    source_numbers: dict[str, int] = {}
    index = FileIndex.read(files, read_stat_cache(dataset), source_numbers)
    index.forget(retry)
    diff = Diff(dataset, files, config.seed, index, source_numbers, frozenset(retry.tolist()), config.max_bytes)
    changes = [_scan(diff, source) for source in sources]
    vanished = index.vanished([source_numbers[source.name] for source in sources])
    names = names_of_ids(dataset, vanished[:NAMES_SHOWN])
    stats = diff.stats + DiffStats(vanished=len(vanished), vanished_names=names)
    new_files = pa.concat_tables(diff.new_files) if diff.new_files else NEW_FILES.empty_table()
    next_id, stat_updates = index.next_id, diff.stat_updates
    del diff, index  # 71 bytes for each file, before the new ones are sorted
    if len(new_files) and not yes:
        refuse_mass_change(changes, on_change)
    require_lease()
    if not len(new_files):
        update_stat_cache(dataset, stat_updates)
        return stats, None
    record = PlanRecord(
        plan_id="",  # Of the rows in their order, which writing finds
        sources=bases,
        inputs=tuple(str(source.input) for source in sources),
        on_change=on_change,
        stats=stats,
    )
    path = plan_path(dataset, number)
    if path.exists():
        raise DatasetError(f"{path}: another writer has made this plan; run the same command again")
    _write(path, new_files, list(source_numbers), next_id, config, record)
    update_stat_cache(dataset, stat_updates)  # After the plan: the cache may only name files that a plan has.
    return stats, read_plan(path)


def _scan(diff: Diff, source: Source) -> SourceChanges:
    """List one source; returns how it compares with the dataset."""
    before = diff.stats
    diff.scan(source)
    number, after = diff.source_numbers[source.name], diff.stats
    gone = after.vanished - before.vanished + len(diff.index.vanished([number]))
    return SourceChanges(source.input, diff.index.count(number), after.changed - before.changed, gone)


def _write(
    path: Location,
    new_files: Any,
    sources: Sequence[str],
    next_id: int,
    config: ResolvedDatasetConfig,
    record: PlanRecord,
) -> None:
    """Put the new files in order, number them, and write a row group for each block."""
    # uint64 [n, 2] each, on the axis of `new_files`
    keys, order_keys = (halves(key_column(new_files.column(name))) for name in ("key", "order"))
    # [n]: rows of `new_files` by key, and within a container by the member's own hash
    order = np.lexsort((order_keys[:, 1], order_keys[:, 0], keys[:, 1], keys[:, 0]))
    held_out = choose_held_out(new_files, np.where(order_keys.any(axis=1), order_keys[:, 1], keys[:, 1]), config)
    if not next_id and held_out.all():
        raise ConfigError(no_training(config, len(held_out)))
    record = replace(record, plan_id=_plan_id(record, next_id, keys[order], order_keys[order]))
    del keys, order_keys
    new_files = new_files.combine_chunks()
    block_rows = _rows_per_block(len(new_files), config.image_bytes)
    schema = PLAN.with_metadata(schema_metadata(record))
    with atomic_write(path) as temporary, temporary.open("wb") as sink, pq.ParquetWriter(sink, schema) as file:
        for first in range(0, len(new_files), block_rows):
            # [rows of this block] -> rows of `new_files`; ids follow the order
            rows = order[first : first + block_rows]
            table = new_files.take(rows)
            columns = {name: table.column(name) for name in PLAN.names if name in NEW_FILES.names}
            columns["source"] = pc.take(pa.array(sources), table.column("source"))
            columns["image_id"] = pa.array(np.arange(next_id + first, next_id + first + len(rows)))
            columns["held_out"] = pa.array(held_out[rows])
            block = pa.table([columns[name] for name in PLAN.names], schema=schema)
            file.write_table(block, row_group_size=block_rows)


def no_training(config: ResolvedDatasetConfig, count: int) -> str:
    """The complaint about a holdout that takes all of `count` images."""
    together = ", in groups," if config.group_by else ""
    return (
        f"`holdout` (={config.holdout}){together} takes all {count} image(s), and leaves none to train on; give a "
        "smaller one, or more images"
    )


def _plan_id(record: PlanRecord, next_id: int, keys: Keys, order_keys: Keys) -> str:
    """A digest of which file gets which id, and of where its bytes come from.

    Two writers whose plans have one number are kept apart by it; a plan that is made again from the same files has the
    same one.

    Args:
        next_id: the first id that the plan assigns.
        keys, order_keys: of the plan's rows in the order of ids, uint64 `[n, 2]`.
    """
    state = new_hasher()
    state.update(canonical_json({"sources": record.sources, "next_id": next_id}))
    for column in (keys, order_keys):
        state.update(np.ascontiguousarray(column, ">u8").tobytes())
    return str(state.hexdigest(length=DIGEST_BYTES))


def _rows_per_block(rows: int, image_bytes: int) -> int:
    """Images of a block: as many as fit, but fewer in a small plan, so that every core has work."""
    blocks = min(max(rows // MIN_BLOCK_ROWS, 1), BLOCKS_PER_PLAN)
    return min(max(BLOCK_BYTES // image_bytes, 1), MAX_BLOCK_ROWS, -(-rows // blocks))
