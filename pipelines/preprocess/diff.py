"""What is new in the sources: listed files beside those that the dataset knows, by path, size, time and content."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import file_keys, halves, key_array
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import CONTAINER_ENDINGS
from pipelines.preprocess.diff_stats import NAMES_SHOWN, DiffStats, display_name
from pipelines.preprocess.file_index import FileIndex, FileStats, content_hashes, hash_files
from pipelines.preprocess.members import Members
from pipelines.preprocess.outputs import require_no_output
from pipelines.preprocess.reader_process import ReaderProcess
from pipelines.preprocess.sources import Source, place_of
from pipelines.preprocess.walk import Files, list_files, no_file

NEW_FILES = pa.schema(
    [
        ("source", pa.int32()),
        ("path", pa.binary()),
        ("member", pa.binary()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("key", pa.binary(16)),
        ("previous_id", pa.int64()),
        ("order", pa.binary(16)),
    ]
)
"""A file or member that gets an id: `source` is the source's number, `order` sorts the members of a container."""
NO_ORDER = bytes(16)
"""`order` of a file that is no container"""


class Diff:
    """Compares the files of sources with the index of earlier ones, and collects what is new."""

    def __init__(
        self,
        dataset: Location,
        plans: Sequence[Any],
        seed: int,
        index: FileIndex,
        source_numbers: dict[str, int],
        retry: frozenset[int],
        max_bytes: int,
    ) -> None:
        """Compare with `index`, which holds the files of `plans` (each a `pyarrow.parquet.ParquetFile`).

        Args:
            seed: of the dataset; a file's key depends on it.
            source_numbers: number of each source by its name; new sources are added.
            retry: ids of rejected files that are to be tried again.
            max_bytes: of the dataset; a larger file is not hashed.
        """
        self.dataset, self.plans, self.seed = dataset, plans, seed
        self.index, self.source_numbers, self.retry = index, source_numbers, retry
        self.max_bytes = max_bytes
        self.new_files: list[Any] = []
        """Tables of the schema `NEW_FILES`"""
        self.stat_updates: list[FileStats] = []
        """Files whose bytes are the old ones under a new size or time"""
        self.stats = DiffStats()
        self._reader = ReaderProcess()

    def scan(self, source: Source) -> None:
        """List the files of `source`, and compare them with the index.

        Raises:
            UserError: if it holds no file.
        """
        with self._reader:
            self._scan(source, self.source_numbers.setdefault(source.name, len(self.source_numbers)))

    def _scan(self, source: Source, number: int) -> None:
        count, listed = 0, set[bytes]()
        modified, modified_keys, modified_ids = Files([], [], []), list[bytes](), list[int]()
        for files in list_files(source):
            count += len(files.paths)
            if source.kind == "list":  # Only a list can name a file twice.
                files = _unlisted(files, listed)
                require_no_output(self.dataset, source, files.paths)
            if not files.paths:
                continue
            keys = file_keys(self.seed, source.name, files.paths)
            for row, image_id in self._compare_files(source, number, files, keys):
                modified.add(files.paths[row], files.sizes[row], files.mtimes_ns[row])
                modified_keys.append(keys[16 * row : 16 * row + 16])
                modified_ids.append(image_id)
        if not count:
            raise no_file(source)
        if modified_ids:
            self._compare_contents(source, number, modified, b"".join(modified_keys), np.array(modified_ids))

    def _compare_files(self, source: Source, number: int, files: Files, keys: bytes) -> list[tuple[int, int]]:
        """Collect what is new; returns (row, id) of each file whose size or time changed: only its bytes can tell."""
        sizes, mtimes_ns = np.array(files.sizes, np.int64), np.array(files.mtimes_ns, np.int64)
        comparison = self.index.compare(halves(keys), sizes, mtimes_ns)
        self.stats += DiffStats(found=len(files.paths), unchanged=int(comparison.same.sum()))
        # Both bool [n], on the axis of `files`
        new, modified = comparison.ids < 0, (comparison.ids >= 0) & ~comparison.same
        containers = [row for row, path in enumerate(files.paths) if path.endswith(CONTAINER_ENDINGS)]
        for row in [row for row in containers if new[row] or modified[row]]:
            key = keys[16 * row : 16 * row + 16]
            in_index = bool(self.index.has_key(halves(key))[0])
            self._compare_container(source, number, files, row, keys, in_index=in_index)
            new[row] = modified[row] = False
        self._collect(number, files, np.flatnonzero(new), keys)
        return [(int(row), int(comparison.ids[row])) for row in np.flatnonzero(modified)]

    def _collect(
        self, number: int, files: Files, rows: Int64Array, keys: bytes, previous_ids: Int64Array | None = None
    ) -> None:
        """Enter the files at `rows` (int64 `[m]`) as new; they are no containers, or cannot be read as such."""
        if not len(rows):
            return
        stats = _stats_of(files, keys, rows)
        columns = {
            "source": np.full(len(rows), number),
            "path": [files.paths[i] for i in rows],
            "bytes": stats.sizes,
            "mtime_ns": stats.mtimes_ns,
            "key": key_array(stats.keys),
            "previous_id": previous_ids,
            "order": key_array(NO_ORDER * len(rows)),
        }
        self.new_files.append(_new_files(columns, len(rows)))

    def _compare_contents(self, source: Source, number: int, files: Files, keys: bytes, ids: Int64Array) -> None:
        """Files of the index (under `ids`, int64 `[n]`) with another size or time: compare their bytes."""
        stored = content_hashes(self.dataset, ids)
        current = hash_files(source.base, files.paths, self.max_bytes)
        # bool [n], on the axis of `files`
        same = np.array([now is not None and now == stored.get(int(i)) for i, now in zip(ids, current, strict=True)])
        changed = np.flatnonzero(~same)
        names = tuple(display_name(source.name, files.paths[i]) for i in changed[:NAMES_SHOWN])
        self.stats += DiffStats(unchanged=int(same.sum()), changed=len(changed), changed_names=names)
        self._collect(number, files, changed, keys, ids[changed])
        self.stat_updates.append(_stats_of(files, keys, np.flatnonzero(same)))

    def _compare_container(
        self, source: Source, number: int, files: Files, row: int, keys: bytes, *, in_index: bool
    ) -> None:
        """Collect the members of a new container; of one that changed, those that are new or changed themselves."""
        path = files.paths[row]
        member_rows, previous_ids = list[int](), None
        try:
            members = self._reader.list_members(place_of(source.base, path))
            member_rows = list(range(len(members.names)))
            if in_index:
                member_rows, previous_ids = self._changed_members(source, path, members)
        except (RejectedImageError, OSError, ValueError):  # It gets a row of its own, and decoding says why.
            self._collect(number, files, np.array([row]), keys)
            return
        if members.damage:
            self._collect(number, files, np.array([row]), keys)
        stats = _stats_of(files, keys, np.array([row]))
        if not member_rows:
            self.stat_updates.append(stats)
            return
        count = len(member_rows)
        order = file_keys(self.seed, source.name, [path + b"\0" + members.names[i] for i in member_rows])
        columns = {
            "source": np.full(count, number),
            "path": [path] * count,
            "member": [members.names[i] for i in member_rows],
            "label": [members.labels[i] for i in member_rows],
            "bytes": np.repeat(stats.sizes, count),
            "mtime_ns": np.repeat(stats.mtimes_ns, count),
            "start": [members.starts[i] for i in member_rows],
            "length": [members.lengths[i] for i in member_rows],
            "key": key_array(stats.keys * count),
            "previous_id": previous_ids,
            "order": key_array(order),
        }
        self.new_files.append(_new_files(columns, count))

    def _changed_members(self, source: Source, path: bytes, members: Members) -> tuple[list[int], list[int | None]]:
        """Rows of `members` that are new or have other bytes than before, and the id that each had, or None."""
        ids = {name: i for name, i in self._ids_of_members(source.name, path).items() if i not in self.retry}
        stored = content_hashes(self.dataset, np.array(list(ids.values()), np.int64))
        common = [row for row, name in enumerate(members.names) if name in ids]
        starts, lengths = [members.starts[row] for row in common], [members.lengths[row] for row in common]
        digests = self._reader.digests(place_of(source.base, path), starts, lengths)
        current = {common[index]: content_hash for index, content_hash in digests.items()}
        changed = [row for row in common if current.get(row) != stored.get(ids[members.names[row]])]
        vanished = sorted(ids.keys() - set(members.names))
        self.stats += DiffStats(
            changed=len(changed),
            vanished=len(vanished),
            changed_names=tuple(display_name(source.name, path, members.names[i]) for i in changed[:NAMES_SHOWN]),
            vanished_names=tuple(display_name(source.name, path, name) for name in vanished[:NAMES_SHOWN]),
        )
        rows = [row for row, name in enumerate(members.names) if name not in ids] + changed
        return rows, [ids.get(members.names[row]) for row in rows]

    def _ids_of_members(self, source: str, path: bytes) -> dict[bytes, int]:
        """Newest id of each member of the container at `path` that has one."""
        ids: dict[bytes, int] = {}
        for plan in self.plans:
            table = plan.read(["source", "path", "member", "image_id"])
            of_container = pc.and_(pc.equal(table.column("source"), source), pc.equal(table.column("path"), path))
            table = table.filter(pc.and_(of_container, pc.is_valid(table.column("member"))))
            ids |= dict(zip(table.column("member").to_pylist(), table.column("image_id").to_pylist(), strict=True))
        return ids


def _unlisted(files: Files, listed: set[bytes]) -> Files:
    """Those of `files` that are not in `listed`, each once; their paths are added to it."""
    unlisted = Files([], [], [])
    for path, size, mtime_ns in zip(*files, strict=True):
        if path not in listed:
            listed.add(path)
            unlisted.add(path, size, mtime_ns)
    return unlisted


def _stats_of(files: Files, keys: bytes, rows: Int64Array) -> FileStats:
    """Keys, sizes and times of the files at `rows` (int64 `[m]`)."""
    if len(rows) == len(files.paths):
        return FileStats(keys, np.array(files.sizes, np.int64), np.array(files.mtimes_ns, np.int64))
    sizes, mtimes_ns = (np.array([column[i] for i in rows], np.int64) for column in (files.sizes, files.mtimes_ns))
    return FileStats(b"".join(keys[16 * i : 16 * i + 16] for i in rows), sizes, mtimes_ns)


def _new_files(columns: dict[str, Any], rows: int) -> Any:
    """A `pyarrow.Table` of the schema `NEW_FILES`; a column that is missing or None is null."""
    arrays = []
    for field in NEW_FILES:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(rows, field.type))
        else:
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type))
    return pa.table(arrays, schema=NEW_FILES)
