"""What is new in the sources: listed files beside those that the dataset knows, by path, size, time and content."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from glo_core.common.arrays import Int64Array
from glo_core.common.digests import digest
from glo_core.common.files import read_parquet
from glo_core.common.location import Location
from glo_core.dataset_format.hash_index import file_keys, halves, key_array
from glo_core.dataset_format.image_decoding import RejectedImageError
from glo_core.dataset_format.manifest import rows_of
from pipelines.preprocess.containers import CONTAINER_ENDINGS, Members, list_members, read_members
from pipelines.preprocess.file_index import FileIndex, content_hashes, hash_files
from pipelines.preprocess.sources import Source, place_of
from pipelines.preprocess.walk import Files, list_files, no_file

NAMES_SHOWN = 5

NEW = pa.schema(
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
"""A file or member that gets an id: its columns, and the hash that it is put in order by within its file."""
NO_ORDER = bytes(16)


@dataclass
class DiffStats:
    """What a listing found, in files; a container is one."""

    found: int = 0
    unchanged: int = 0
    """Known, with the bytes that they had"""
    changed: int = 0
    """Known, with other bytes: new images. Of containers, their members"""
    vanished: int = 0
    """Known and not met: their images stay. Of containers, their members"""
    changed_names: list[str] = dataclasses.field(default_factory=list)
    vanished_names: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person should know of files that are not as they were."""
        lines = []
        if self.changed:
            lines.append(
                f"changed {self.changed}: new images under new ids ({_some(self.changed, self.changed_names)})"
            )
        if self.vanished:
            lines.append(f"vanished {self.vanished}: their images stay ({_some(self.vanished, self.vanished_names)})")
        return lines


def _some(count: int, names: Sequence[str]) -> str:
    return ", ".join(names) + (", ..." if count > len(names) else "")


class Diff:
    """Compares what is listed with what is known, and collects what is new."""

    def __init__(
        self,
        dataset: Location,
        plans: Sequence[str],
        seed: int,
        known: FileIndex,
        numbers: dict[str, int],
        retry: frozenset[int],
    ) -> None:
        """Compare with what the plans of these names dealt ids to, and `known` knows.

        Args:
            numbers: of each source by its name; new ones are added.
            retry: ids of rejected files that are to be tried again.
        """
        self.dataset, self.plans, self.seed = dataset, plans, seed
        self.known, self.numbers, self.retry = known, numbers, retry
        self.new: list[Any] = []
        self.touched: list[tuple[bytes, Int64Array, Int64Array]] = []
        self.survey = DiffStats()

    def add(self, source: Source) -> None:
        """List a source.

        Raises:
            UserError: if it holds no file.
        """
        number = self.numbers.setdefault(source.name, len(self.numbers))
        met, listed = 0, set[bytes]()
        doubtful, doubtful_keys, doubtful_ids = Files([], [], []), list[bytes](), list[int]()
        for files in list_files(source):
            met += len(files.paths)
            if source.kind == "list":  # Only a list can name a file twice.
                files = _unlisted(files, listed)
            if not files.paths:
                continue
            keys = file_keys(self.seed, source.name, files.paths)
            for row, image_id in self._add_files(source, number, files, keys):
                doubtful.add(files.paths[row], files.sizes[row], files.mtimes_ns[row])
                doubtful_keys.append(keys[16 * row : 16 * row + 16])
                doubtful_ids.append(image_id)
        if not met:
            raise no_file(source)
        if doubtful_ids:
            self._add_doubtful(source, number, doubtful, b"".join(doubtful_keys), np.array(doubtful_ids))

    def _add_files(self, source: Source, number: int, files: Files, keys: bytes) -> list[tuple[int, int]]:
        """Take what is new; returns the rows of which only the bytes can tell, each with the known id."""
        sizes, mtimes = np.array(files.sizes, np.int64), np.array(files.mtimes_ns, np.int64)
        seen = self.known.compare(halves(keys), sizes, mtimes)
        self.survey.found += len(files.paths)
        self.survey.unchanged += int(seen.same.sum())
        fresh, doubtful = seen.ids < 0, (seen.ids >= 0) & ~seen.same
        containers = [row for row, path in enumerate(files.paths) if path.endswith(CONTAINER_ENDINGS)]
        for row in [row for row in containers if fresh[row] or doubtful[row]]:
            key = keys[16 * row : 16 * row + 16]
            self._add_container(source, number, files, row, keys, again=bool(self.known.is_known(halves(key))[0]))
            fresh[row] = doubtful[row] = False
        self._append(number, files, np.flatnonzero(fresh), keys)
        return [(int(row), int(seen.ids[row])) for row in np.flatnonzero(doubtful)]

    def _append(
        self, number: int, files: Files, rows: Int64Array, keys: bytes, previous: Int64Array | None = None
    ) -> None:
        """Files that are no containers."""
        if not len(rows):
            return
        some = _stat_of(files, keys, rows)
        columns = [np.full(len(rows), number), [files.paths[i] for i in rows], None, None, *some[1:], None, None]
        self.new.append(_table([*columns, key_array(some[0]), previous, key_array(NO_ORDER * len(rows))], len(rows)))

    def _add_doubtful(self, source: Source, number: int, files: Files, keys: bytes, ids: Int64Array) -> None:
        """Files that are known under another size or time: only their bytes can tell."""
        before = content_hashes(self.dataset, ids)
        now = hash_files(source.base, files.paths)
        same = np.array([b is not None and b == before.get(int(i)) for i, b in zip(ids, now, strict=True)])
        touched, changed = np.flatnonzero(same), np.flatnonzero(~same)
        self.survey.unchanged += len(touched)
        self.survey.changed += len(changed)
        self._show(self.survey.changed_names, [shown(source.name, files.paths[i]) for i in changed[:NAMES_SHOWN]])
        self._append(number, files, changed, keys, ids[changed])
        self.touched.append(_stat_of(files, keys, touched))

    @staticmethod
    def _show(names: list[str], more: Sequence[str]) -> None:
        names += more
        del names[NAMES_SHOWN:]

    def _add_container(self, source: Source, number: int, files: Files, row: int, keys: bytes, *, again: bool) -> None:
        """The members of a new container; of one that changed, those that are new or changed themselves."""
        path = files.paths[row]
        rows, previous = list[int](), None
        try:
            members = list_members(place_of(source.base, path))
            rows = list(range(len(members.names)))
            if again:
                rows, previous = self._changed_members(source, path, members)
        except (RejectedImageError, OSError, ValueError):  # It gets a row of its own, and decoding says why.
            self._append(number, files, np.array([row]), keys)
            return
        if members.damaged:
            self._append(number, files, np.array([row]), keys)
        if not rows:
            self.touched.append(_stat_of(files, keys, [row]))
            return
        order = file_keys(self.seed, source.name, [path + b"\0" + members.names[i] for i in rows])
        key, size, mtime = _stat_of(files, keys, [row])
        columns = [
            np.full(len(rows), number),
            [path] * len(rows),
            [members.names[i] for i in rows],
            [members.labels[i] for i in rows],
            np.repeat(size, len(rows)),
            np.repeat(mtime, len(rows)),
            [members.starts[i] for i in rows],
            [members.lengths[i] for i in rows],
            key_array(key * len(rows)),
            previous,
            key_array(order),
        ]
        self.new.append(_table(columns, len(rows)))

    def _changed_members(self, source: Source, path: bytes, members: Members) -> tuple[list[int], list[int | None]]:
        before = _known_members(self.dataset, self.plans, source.name, path)
        before = {name: image_id for name, image_id in before.items() if image_id not in self.retry}
        hashes = content_hashes(self.dataset, np.array(list(before.values()), np.int64))
        met = [i for i, name in enumerate(members.names) if name in before]
        starts, lengths = [members.starts[i] for i in met], [members.lengths[i] for i in met]
        now = {
            met[place]: digest(data)
            for place, data in read_members(place_of(source.base, path), starts, lengths)
            if isinstance(data, bytes)
        }
        changed = [i for i in met if now.get(i) != hashes.get(before[members.names[i]])]
        gone = before.keys() - set(members.names)
        self.survey.changed += len(changed)
        self.survey.vanished += len(gone)
        self._show(self.survey.changed_names, [shown(source.name, path, members.names[i]) for i in changed])
        self._show(self.survey.vanished_names, [shown(source.name, path, name) for name in sorted(gone)])
        rows = [i for i, name in enumerate(members.names) if name not in before] + changed
        return rows, [before.get(members.names[i]) for i in rows]


def _unlisted(files: Files, listed: set[bytes]) -> Files:
    """Those not listed before, each once."""
    once = Files([], [], [])
    for path, size, mtime_ns in zip(*files, strict=True):
        if path not in listed:
            listed.add(path)
            once.add(path, size, mtime_ns)
    return once


def _known_members(dataset: Location, plans: Sequence[str], source: str, path: bytes) -> dict[bytes, int]:
    """Newest id of each member of a container that is known."""
    found: dict[bytes, int] = {}
    for name in plans:
        table = read_parquet(dataset / "plans" / name)
        wanted = pc.and_(pc.equal(table.column("source"), source), pc.equal(table.column("path"), path))
        table = table.filter(pc.and_(wanted, pc.is_valid(table.column("member"))))
        found |= dict(zip(table.column("member").to_pylist(), table.column("image_id").to_pylist(), strict=True))
    return found


def names_of(dataset: Location, ids: Int64Array) -> list[str]:
    rows = rows_of(dataset, ids, ["source", "path"]).to_pylist()
    return [shown(row["source"], row["path"]) for row in rows]


def shown(source: str, path: bytes, member: bytes | None = None) -> str:
    """A name for people: one line, whatever bytes it is made of."""
    whole = path if member is None else path + b"!" + member
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{source}/{os.fsdecode(whole)}")


def _stat_of(files: Files, keys: bytes, rows: Sequence[int] | Int64Array) -> tuple[bytes, Int64Array, Int64Array]:
    """Keys, sizes and times of some files."""
    if len(rows) == len(files.paths):
        return keys, np.array(files.sizes, np.int64), np.array(files.mtimes_ns, np.int64)
    some = b"".join(keys[16 * i : 16 * i + 16] for i in rows)
    return some, np.array([files.sizes[i] for i in rows]), np.array([files.mtimes_ns[i] for i in rows])


def _table(columns: Sequence[Any], rows: int) -> Any:
    arrays = []
    for column, field in zip(columns, NEW, strict=True):
        known = isinstance(column, pa.Array)
        array = pa.nulls(rows, field.type) if column is None else column if known else pa.array(column, field.type)
        arrays.append(array)
    return pa.table(arrays, schema=NEW)
