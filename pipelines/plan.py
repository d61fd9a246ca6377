"""The plan of a preprocessing run: which file gets which id, committed before anything is decoded.

Ids are dealt in the order of a seeded hash of source and path, numbered on from the last, so that they depend
neither on the order of a directory listing nor on what is found in the files.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glo_core.blocks import DatasetConfig
from glo_core.files import UserError, read_parquet, replacing

BLOCK_BYTES = 128 << 20
"""Pixels of a block at most."""
MIN_BLOCK_ROWS, BLOCKS_PER_PLAN = 256, 16
"""A small plan is cut into this many blocks, so that every core has work, but not into smaller ones."""


PLAN = pa.schema(
    [
        ("image_id", pa.int64()),
        ("source", pa.string()),
        ("path", pa.binary()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("held_out", pa.bool_()),
    ]
)


class FoundFile(NamedTuple):
    source: str
    path: bytes
    """Relative to its source, as the file system names it"""
    bytes: int
    mtime_ns: int


class Plan(NamedTuple):
    """One committed plan: which file gets which id."""

    number: int
    path: Path
    rows: int
    blocks: int
    sources: dict[str, str]
    """Folder of each source of the dataset so far"""
    inputs: list[str]
    """Sources that the plan was made for"""
    unchanged: int
    """Files met that were known already"""


def snapshot_path(dataset: Path, number: int) -> Path:
    return dataset / "snapshots" / f"{number:06d}.json"


def plan_path(dataset: Path, number: int) -> Path:
    return dataset / "plans" / f"{number:06d}.parquet"


def read_plan(path: Path) -> Plan:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({error}); restore it: it holds the ids") from None
    metadata = json.loads(file.schema_arrow.metadata[b"glo"])
    return Plan(int(path.stem), path, file.metadata.num_rows, file.metadata.num_row_groups, **metadata)


def pending_plan(dataset: Path) -> Plan | None:
    """The plan of an interrupted run, if there is one."""
    plans = sorted((dataset / "plans").glob("*.parquet"))
    if not plans or snapshot_path(dataset, int(plans[-1].stem)).exists():
        return None
    return read_plan(plans[-1])


def make_plan(dataset: Path, config: DatasetConfig, folders: Sequence[Path]) -> Plan | None:
    """List `folders`, deal ids to the files not yet known, and commit that. None if there are none."""
    plans = sorted((dataset / "plans").glob("*.parquet"))
    number = int(plans[-1].stem) + 1 if plans else 1
    sources = dict(read_plan(plans[-1]).sources) if plans else {}
    names = {folder: _source_name(folder, sources) for folder in folders}
    known, next_id = _known_files(dataset, plans)
    found: list[FoundFile] = []
    unchanged = 0
    for folder, source in names.items():
        met = 0
        for file in _list_files(folder, source):
            met += 1
            if file in known:
                unchanged += 1
            else:
                found.append(file)
        if not met:
            raise UserError(f"input={folder}: holds no file, where image files were expected")
    if not found:
        return None
    keys = [_file_key(config.seed, file) for file in found]
    order = sorted(range(len(found)), key=lambda i: (keys[i], found[i].source, found[i].path))
    rows = min(max(BLOCK_BYTES // config.image_bytes, 1), max(MIN_BLOCK_ROWS, -(-len(found) // BLOCKS_PER_PLAN)))
    metadata = {"sources": sources, "inputs": [str(folder) for folder in folders], "unchanged": unchanged}
    table = pa.table(
        {
            "image_id": np.arange(next_id, next_id + len(found)),
            "source": [found[i].source for i in order],
            "path": [found[i].path for i in order],
            "bytes": [found[i].bytes for i in order],
            "mtime_ns": [found[i].mtime_ns for i in order],
            # The low half of the same 128 bits: independent of the order, and of later folders.
            "held_out": [(keys[i] & (2**64 - 1)) / 2**64 < config.holdout for i in order],
        },
        schema=PLAN.with_metadata({"glo": json.dumps(metadata)}),
    )
    path = plan_path(dataset, number)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=rows)  # One row group per block.
    return read_plan(path)


def _source_name(folder: Path, sources: dict[str, str]) -> str:
    """A name for `folder` that does not depend on where it lies, entered in `sources`."""
    for name, known in sources.items():
        if known == str(folder):
            return name
    name, number = folder.name, 1
    while name in sources:
        number += 1
        name = f"{folder.name}-{number}"
    sources[name] = str(folder)
    return name


def _known_files(dataset: Path, plans: Sequence[Path]) -> tuple[set[FoundFile], int]:
    """Every file planned before, and the first id never dealt."""
    known: set[FoundFile] = set()
    next_id = 0
    for path in plans:
        table = read_parquet(path)
        columns = [table.column(name).to_pylist() for name in ("source", "path", "bytes", "mtime_ns")]
        known.update(map(FoundFile, *columns))
        next_id = max(next_id, table.column("image_id")[-1].as_py() + 1)
    return known, next_id


def _list_files(folder: Path, source: str) -> Iterator[FoundFile]:
    """Every regular file below `folder`; names that begin with a dot are left out, as file managers do."""
    base = os.fsencode(folder)
    pending = [base]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield FoundFile(source, os.path.relpath(entry.path, base), status.st_size, status.st_mtime_ns)


def _file_key(seed: int, file: FoundFile) -> int:
    """128 bits that place a file in the order of ids and decide whether it is held out."""
    text = b"\0".join([str(seed).encode(), os.fsencode(file.source), file.path])
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")
