"""The files that earlier plans gave ids to, under their newest size and time."""

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glo_core.common.arrays import BoolArray, Int64Array
from glo_core.common.arrow_files import int64_values, read_parquet
from glo_core.common.errors import DatasetError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import HashIndex, Keys, halves, key_array, key_column
from glo_core.dataset_format.manifest import read_parts, rows_of
from glo_core.dataset_format.records import DatasetFile, parse_schema, schema_metadata
from glo_core.dataset_format.rejection import RejectedImageError
from glo_core.dataset_format.snapshots import Snapshot
from pipelines.preprocess.reading import hash_file, require_readable


class FileStats(NamedTuple):
    """Sizes and times of n files."""

    keys: bytes
    """16 bytes for each file"""
    sizes: Int64Array
    """Bytes, int64 `[n]`"""
    mtimes_ns: Int64Array
    """Nanoseconds since 1970, int64 `[n]`"""


class Comparison(NamedTuple):
    """How n listed files compare with the index."""

    ids: Int64Array
    """Newest id of the file at each path, int64 `[n]`; -1 of a path that is not in the index"""
    same: BoolArray
    """bool `[n]`: in the index, with the same size and time"""


class FileIndex:
    """Every file and member of earlier plans, under its newest size and time: 71 bytes of memory each."""

    def __init__(
        self,
        keys: Keys,
        ids: Int64Array,
        sizes: Int64Array,
        mtimes_ns: Int64Array,
        sources: npt.NDArray[np.int32],
        is_member: BoolArray,
    ) -> None:
        """Take n rows in the order of ids; of equal keys the last row counts.

        Args:
            keys: uint64 `[n, 2]`; the members of a container share its key.
            ids, sizes, mtimes_ns: int64 `[n]`.
            sources: number of each row's source, int32 `[n]`.
            is_member: bool `[n]`.
        """
        self.newest, self._keys, self._is_member = HashIndex(keys, keep_last=True), keys, is_member
        self.ids, self.sizes, self.mtimes_ns, self.sources = ids, sizes, mtimes_ns, sources
        self._listed: BoolArray = np.zeros(len(ids), np.bool_)
        self._forgotten: BoolArray = np.zeros(len(ids), np.bool_)

    @classmethod
    def read(cls, plans: Sequence[Any], stat_cache: FileStats, source_numbers: dict[str, int]) -> Self:
        """The files of `plans`, each a `pyarrow.parquet.ParquetFile`, in their order.

        Args:
            stat_cache: newer sizes and times of some files.
            source_numbers: number of each source by its name; sources of the plans are added.
        """
        rows = sum(plan.metadata.num_rows for plan in plans)
        keys, columns = np.empty((rows, 2), np.uint64), np.empty((3, rows), np.int64)
        sources, is_member, first = np.empty(rows, np.int32), np.zeros(rows, np.bool_), 0
        for plan in plans:
            for group in range(plan.num_row_groups):
                table = plan.read_row_group(group, ["image_id", "bytes", "mtime_ns", "source", "key", "start"])
                # Rows of this group on the axis of all rows
                part = slice(first, first + len(table))
                keys[part] = halves(key_column(table.column("key")))
                for column, name in zip(columns, ("image_id", "bytes", "mtime_ns"), strict=True):
                    column[part] = int64_values(table.column(name))
                sources[part] = _number_sources(table.column("source"), source_numbers)
                is_member[part] = np.asarray(table.column("start").is_valid())
                first += len(table)
        index = cls(keys, columns[0], columns[1], columns[2], sources, is_member)
        index._apply(stat_cache)
        return index

    def _apply(self, stats: FileStats) -> None:
        """Take newer sizes and times of files in the index."""
        # Row of the index for each entry, [m]; an entry may be of a plan that is gone.
        rows = self.newest.look_up(halves(stats.keys))
        present = rows >= 0
        self.sizes[rows[present]] = stats.sizes[present]
        self.mtimes_ns[rows[present]] = stats.mtimes_ns[present]

    @property
    def next_id(self) -> int:
        """The first id never assigned."""
        return int(self.ids[-1]) + 1 if len(self.ids) else 0

    def compare(self, keys: Keys, sizes: Int64Array, mtimes_ns: Int64Array) -> Comparison:
        """Look up n files that are listed now, and remember that they were.

        Args:
            keys: uint64 `[n, 2]`.
            sizes, mtimes_ns: int64 `[n]`.
        """
        # Row of the index for each listed file, [n]; `rows[present]` leads from the listed files to the index.
        rows = self.newest.look_up(keys)
        present = rows >= 0
        self._listed[rows[present]] = True
        present[present] = ~self._forgotten[rows[present]]
        same = present.copy()
        same[present] = (self.sizes[rows[present]] == sizes[present]) & (
            self.mtimes_ns[rows[present]] == mtimes_ns[present]
        )
        ids = np.full(len(keys), -1)
        ids[present] = self.ids[rows[present]]
        return Comparison(ids, same)

    def forget(self, ids: Int64Array) -> None:
        """Treat the files of `ids` (int64 `[m]`) as never listed, unless a later row has taken their place."""
        rows = np.flatnonzero(np.isin(self.ids, ids))
        # Newest row of each one's key, [m]; members share a key, and any of them makes the container be read again.
        newest = self.newest.look_up(self._keys[rows])
        self._forgotten[newest[(newest == rows) | self._is_member[rows]]] = True

    def has_key(self, keys: Keys) -> BoolArray:
        """Whether there is any row of each of `keys` (uint64 `[n, 2]`), forgotten or not: bool `[n]`."""
        return self.newest.look_up(keys) >= 0

    def count(self, source: int) -> int:
        """Files of a source (its number), and members of its containers, under their newest ids."""
        is_newest: BoolArray = np.zeros(len(self.ids), np.bool_)
        is_newest[self.newest.rows] = True
        return int(((self.sources == source) & (is_newest | self._is_member)).sum())

    def vanished(self, sources: Sequence[int]) -> Int64Array:
        """Ids, ascending, of the files of `sources` (their numbers) that were not listed."""
        rows = self.newest.rows
        return np.sort(self.ids[rows[~self._listed[rows] & np.isin(self.sources[rows], sources)]])


def _number_sources(names: Any, numbers: dict[str, int]) -> npt.NDArray[np.int32]:
    """The number of each name, int32 `[n]`; a new name gets the next number."""
    encoded = pa.concat_arrays(names.chunks).dictionary_encode()
    lookup = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
    # [names] of the dictionary, taken by its indices [n]
    return np.array(lookup, np.int32)[encoded.indices.to_numpy()]


# ---------------------------------------------------------------- where size and time cannot tell


@dataclass(frozen=True, kw_only=True)
class StatCacheRecord(DatasetFile):
    """What the schema of `stat_cache.parquet` holds: only its format."""

    format = "glo-stat-cache"


STAT_CACHE = pa.schema(
    [("key", pa.binary(16)), ("bytes", pa.int64()), ("mtime_ns", pa.int64())], schema_metadata(StatCacheRecord())
)


def _stat_cache_path(dataset: Location) -> Location:
    return dataset / "stat_cache.parquet"


def read_stat_cache(dataset: Location) -> FileStats:
    """The newest size and time of files whose size or time changed while their bytes did not."""
    place, table = _stat_cache_path(dataset), STAT_CACHE.empty_table()
    if place.exists():
        table = read_parquet(place, error=DatasetError)
        parse_schema(table.schema.metadata, StatCacheRecord, place)
    return FileStats(
        key_column(table.column("key")).tobytes(),
        int64_values(table.column("bytes")),
        int64_values(table.column("mtime_ns")),
    )


def update_stat_cache(dataset: Location, updates: Sequence[FileStats]) -> None:
    """Remember the new size and time of files whose bytes are the old ones, so as not to read them again."""
    if not any(len(update.sizes) for update in updates):
        return
    parts = [read_stat_cache(dataset), *updates]
    keys = b"".join(part.keys for part in parts)
    sizes, mtimes_ns = (np.concatenate(columns) for columns in zip(*(part[1:] for part in parts), strict=True))
    newest = np.sort(HashIndex(halves(keys), keep_last=True).rows)
    table = pa.table([key_array(keys), sizes, mtimes_ns], schema=STAT_CACHE).take(newest)
    with atomic_write(_stat_cache_path(dataset)) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)


def content_hashes(dataset: Location, ids: Int64Array) -> dict[int, bytes]:
    """The content hash of each of `ids` (int64 `[n]`) whose file could be read."""
    table = rows_of(dataset, ids, ["content_hash"])
    pairs = zip(table.column("image_id").to_pylist(), table.column("content_hash").to_pylist(), strict=True)
    return {image_id: content_hash for image_id, content_hash in pairs if content_hash is not None}


def hash_files(base: Location, paths: Sequence[bytes], max_bytes: int) -> list[bytes | None]:
    """BLAKE3-128 of each file's bytes as they are now; None where it cannot be read, or is larger than `max_bytes`."""
    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:  # Reading and hashing both release the lock.
        return list(pool.map(lambda path: hash_file(base, path, max_bytes), paths))


# ---------------------------------------------------------------- rejected files


def ids_to_retry(dataset: Location, snapshots: Sequence[Snapshot], *, everything: bool) -> Int64Array:
    """Ids of rejected files to try again, int64 `[n]`: all, or those that could not be read and now can."""
    unread = {"unreadable", "missing"}
    if not everything and not unread & {reason for snapshot in snapshots for reason in snapshot.rejected}:
        return np.empty(0, np.int64)
    bases = {name: Location(base) for name, base in snapshots[-1].sources.items()} if snapshots else {}
    can_be_read = functools.cache(lambda source, path: _can_be_read(bases[source], path))
    ids: list[int] = []
    for table in read_parts(dataset, ["image_id", "source", "path", "status", "reason"]):
        ids += [
            row["image_id"]
            for row in table.filter(pc.equal(table.column("status"), "rejected")).to_pylist()
            if everything or (row["reason"] in unread and can_be_read(row["source"], row["path"]))
        ]
    return np.array(ids, np.int64)


def _can_be_read(base: Location, path: bytes) -> bool:
    try:
        require_readable(base, path)
    except RejectedImageError:
        return False
    return True
