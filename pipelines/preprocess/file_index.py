"""The files that a dataset knows from earlier plans, and what has become of them since."""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.digests import digest
from glo_core.common.files import atomic_write, open_parquet, read_parquet
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import HashIndex, Keys, halves, key_array, key_column
from glo_core.dataset_format.image_decoding import RejectedImageError
from glo_core.dataset_format.manifest import read_parts, rows_of
from pipelines.preprocess.sources import place_of, read_file

Mask = npt.NDArray[np.bool_]
TOUCHED = pa.schema([("key", pa.binary(16)), ("bytes", pa.int64()), ("mtime_ns", pa.int64())])


class Comparison(NamedTuple):
    """How files that were met compare with what is known."""

    ids: Int64Array
    """Id of the known file at each path, or -1"""
    same: Mask
    """Known, of the same size and time"""


class FileIndex:
    """Every file planned before, under its newest size and time: 71 bytes of memory each."""

    def __init__(
        self,
        keys: Keys,
        ids: Int64Array,
        sizes: Int64Array,
        mtimes_ns: Int64Array,
        sources: npt.NDArray[np.int32],
        is_member: Mask,
    ) -> None:
        """Take columns in the order of ids; of equal keys the last row counts."""
        self.table, self._keys, self._is_member = HashIndex(keys, keep_last=True), keys, is_member
        self.ids, self.sizes, self.mtimes_ns, self.sources = ids, sizes, mtimes_ns, sources
        self._seen: Mask = np.zeros(len(ids), np.bool_)
        self._forgotten: Mask = np.zeros(len(ids), np.bool_)

    @classmethod
    def read(cls, dataset: Location, plans: Sequence[str], sources: dict[str, int]) -> Self:
        """The files of `plans` (names of files).

        Args:
            sources: a number for each name of a source; names that are met are added.
        """
        files = [open_parquet(dataset / "plans" / name) for name in plans]
        rows = sum(file.metadata.num_rows for file in files)
        keys, columns = np.empty((rows, 2), np.uint64), np.empty((3, rows), np.int64)
        source, is_member, first = np.empty(rows, np.int32), np.zeros(rows, np.bool_), 0
        for file in files:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, ["image_id", "bytes", "mtime_ns", "source", "key", "start"])
                part = slice(first, first + len(table))
                keys[part] = halves(key_column(table.column("key")))
                for column, name in zip(columns, ("image_id", "bytes", "mtime_ns"), strict=True):
                    column[part] = table.column(name).to_numpy()
                source[part] = _numbered(table.column("source"), sources)
                is_member[part] = np.asarray(table.column("start").is_valid())
                first += len(table)
        known = cls(keys, columns[0], columns[1], columns[2], source, is_member)
        if (dataset / "touched.parquet").exists():
            touched = read_parquet(dataset / "touched.parquet")
            found = known.table.look_up(halves(key_column(touched.column("key"))))
            known.sizes[found[found >= 0]] = touched.column("bytes").to_numpy()[found >= 0]
            known.mtimes_ns[found[found >= 0]] = touched.column("mtime_ns").to_numpy()[found >= 0]
        return known

    @property
    def next_id(self) -> int:
        """The first id never assigned."""
        return int(self.ids[-1]) + 1 if len(self.ids) else 0

    def compare(self, keys: Keys, sizes: Int64Array, mtimes_ns: Int64Array) -> Comparison:
        """Look up files that were met now, and remember that they were."""
        rows = self.table.look_up(keys)
        known = rows >= 0
        self._seen[rows[known]] = True
        known[known] = ~self._forgotten[rows[known]]
        same = known.copy()
        same[known] = (self.sizes[rows[known]] == sizes[known]) & (self.mtimes_ns[rows[known]] == mtimes_ns[known])
        ids = np.full(len(keys), -1)
        ids[known] = self.ids[rows[known]]
        return Comparison(ids, same)

    def forget(self, ids: Int64Array) -> None:
        """Treat the files of these ids as never met, unless a later row has taken their place."""
        rows = np.flatnonzero(np.isin(self.ids, ids))
        newest = self.table.look_up(self._keys[rows])
        self._forgotten[newest[(newest == rows) | self._is_member[rows]]] = True

    def is_known(self, keys: Keys) -> Mask:
        """Whether there is any row of each key, forgotten or not."""
        return self.table.look_up(keys) >= 0

    def vanished(self, sources: Sequence[int]) -> Int64Array:
        """Ids of the files of `sources` that were not met."""
        newest = self.table.rows
        return np.sort(self.ids[newest[~self._seen[newest] & np.isin(self.sources[newest], sources)]])


def _numbered(names: Any, numbers: dict[str, int]) -> npt.NDArray[np.int32]:
    """The number of each name; a new one gets the next number."""
    encoded = pa.concat_arrays(names.chunks).dictionary_encode()
    lookup = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
    return np.array(lookup, np.int32)[encoded.indices.to_numpy()]


# ---------------------------------------------------------------- where size and time cannot tell


def write_touched(dataset: Location, touched: Sequence[tuple[bytes, Int64Array, Int64Array]]) -> None:
    """Remember the new size and time of files whose bytes are the old ones, so as not to read them again.

    Args:
        touched: keys, sizes, times.
    """
    if not touched:
        return
    place = dataset / "touched.parquet"
    keys, sizes, mtimes = zip(*touched, strict=True)
    columns = [key_array(b"".join(keys)), np.concatenate(sizes), np.concatenate(mtimes)]
    table = pa.table(columns, schema=TOUCHED)
    if place.exists():
        older = read_parquet(place)
        table = pa.concat_tables([older.filter(pc.invert(pc.is_in(older.column("key"), table.column("key")))), table])
    with atomic_write(place) as temporary:
        pq.write_table(table, temporary)


def content_hashes(dataset: Location, ids: Int64Array) -> dict[int, bytes]:
    """The content hash of each id whose file was ever read."""
    table = rows_of(dataset, ids, ["content_hash"])
    pairs = zip(table.column("image_id").to_pylist(), table.column("content_hash").to_pylist(), strict=True)
    return {image_id: content for image_id, content in pairs if content is not None}


def hash_files(base: Location, paths: Sequence[bytes]) -> list[bytes | None]:
    """BLAKE3-128 of each file's bytes as they are now; None where it cannot be read."""

    def hash_file(path: bytes) -> bytes | None:
        try:
            return digest(read_file(base, path))
        except RejectedImageError:
            return None

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1)) as pool:  # Reading and hashing both release the lock.
        return list(pool.map(hash_file, paths))


# ---------------------------------------------------------------- rejected files


def ids_to_retry(dataset: Location, snapshots: Sequence[Mapping[str, Any]], *, everything: bool) -> Int64Array:
    """Ids of rejected files to try again: all, or those that could not be read and now can."""
    unread = {"unreadable", "missing"}
    if not everything and not unread & {reason for snapshot in snapshots for reason in snapshot["rejected"]}:
        return np.empty(0, np.int64)
    bases = {name: Location(base) for name, base in snapshots[-1]["sources"].items()} if snapshots else {}
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
        with place_of(base, path).open() as file:
            file.read(1)
    except (OSError, ValueError):
        return False
    return True
