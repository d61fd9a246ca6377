"""Guards against folders that are not the ones they seem: another folder of the name, a mount that is away."""

import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from glo_core.common.digests import digest
from glo_core.common.errors import ConfigError, UserError
from glo_core.common.location import Location, is_uri
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import read_members
from pipelines.preprocess.file_index import content_hashes
from pipelines.preprocess.reading import foreign_data, hash_file
from pipelines.preprocess.sources import place_of

SAMPLE = 32
"""Files that tell whether a folder is the one that moved"""
MOST_CHANGED = 0.1
"""Part of a source's files that may change, or go, without a word of the user"""


# ---------------------------------------------------------------- a folder that moved, or another one of its name


def holds_known_files(dataset: Location, plans: Sequence[Any], max_bytes: int, source: str, base: Location) -> bool:
    """Whether the folder `base` holds the files of `source`: at least half of a sample, by path and bytes.

    Args:
        plans: each a `pyarrow.parquet.ParquetFile`, oldest first.
        max_bytes: of a file that is read.
    """
    rows = _sample(plans, source)
    hashes = content_hashes(dataset, np.array([row["image_id"] for row in rows], np.int64))
    rows = [row for row in rows if row["image_id"] in hashes]
    same = sum(_hash_now(base, row, max_bytes) == hashes[row["image_id"]] for row in rows)
    return bool(rows) and 2 * same >= len(rows)


def _sample(plans: Sequence[Any], source: str) -> list[dict[str, Any]]:
    """Some files of `source`, under the newest ids that are met; ids follow a hash, so that any rows are a sample."""
    rows: dict[tuple[bytes, bytes | None], dict[str, Any]] = {}
    for plan in reversed(plans):
        for group in range(plan.num_row_groups):
            table = plan.read_row_group(group, ["image_id", "source", "path", "member", "start", "length"])
            for row in table.filter(pc.equal(table.column("source"), source)).slice(0, SAMPLE).to_pylist():
                rows.setdefault((row["path"], row["member"]), row)
            if len(rows) >= SAMPLE:
                return list(rows.values())[:SAMPLE]
    return list(rows.values())


def _hash_now(base: Location, row: dict[str, Any], max_bytes: int) -> bytes | None:
    """BLAKE3-128 of the bytes that the file or member of `row` has below `base`; None if there is none."""
    if row["member"] is None:
        return hash_file(base, row["path"], max_bytes)
    try:
        with foreign_data("unreadable"):
            place = place_of(base, row["path"])
            data = next((data for _, data in read_members(place, [row["start"]], [row["length"]])), None)
            return digest(data) if isinstance(data, bytes) else None
    except RejectedImageError:
        return None


# ---------------------------------------------------------------- many changes at once


class SourceChanges(NamedTuple):
    """How the files of a source, members of containers included, compare with the dataset."""

    input: Location
    known: int
    """Files that the dataset has of this source"""
    changed: int
    gone: int


def refuse_mass_change(changes: Sequence[SourceChanges], on_change: str) -> None:
    """Refuse a source of which more than a tenth changed or went at once: it may be another folder, or half mounted.

    Raises:
        ConfigError: with the counts of the first one.
    """
    for source in changes:
        count = source.changed + source.gone
        if count > max(1, MOST_CHANGED * source.known):
            what = "are removed, since `on_change` is replace" if on_change == "replace" else "stay"
            raise ConfigError(
                f"`input` (={source.input}): of its {source.known} files in the dataset {source.changed} changed and "
                f"{source.gone} are gone, which is more than a tenth; if this is the right folder and whole, give "
                f"`yes` (the images of changed files {what}, those of files that are gone stay)"
            )


# ---------------------------------------------------------------- a mount that is away


def require_base(base: Location, path: bytes, *, was_there: bool) -> None:
    """After a file could not be read: raise if the folder that it lies in is not there on this machine.

    A folder that is empty counts as not there: it is what is left of a mount.

    Args:
        base: of the file's source.
        path: of the file, as the plan has it.
        was_there: whether the file was there when it was listed.

    Raises:
        UserError: naming the machine and the folder.
    """
    text = os.fsdecode(path)
    if is_uri(text):
        return
    # A line of a list may be wrong from the start; what was listed a moment ago was there, and so was its folder, which
    # may be on a mount of its own.
    folder = place_of(base, path).parent if was_there and base.path is not None else base
    if (was_there or not text.startswith("/")) and not _holds_files(folder):
        raise UserError(
            f"{folder}: not there, or empty, on {socket.gethostname()}, where an input was listed; mount it and run "
            "the same command again, it goes on from what is finished (or give `discard_plan`)"
        )


def _holds_files(folder: Location) -> bool:
    try:
        if folder.path is None:
            return folder.exists()
        with os.scandir(folder.path) as entries:
            return next(entries, None) is not None
    except OSError:  # Also a network mount that has gone stale
        return False
