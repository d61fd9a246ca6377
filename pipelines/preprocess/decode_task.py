"""One block: a Ray task reads a row group of the plan and writes the decoded images and their manifest rows.

row group of the plan -> bytes (read once) -> content hash -> pixels -> blocks/N-K.arrow, manifest/N-K.parquet
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glo_core.common.arrays import BoolArray, Int64Array
from glo_core.common.arrow_files import open_parquet
from glo_core.common.digests import digest
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location, is_uri
from glo_core.dataset_format.blocks import write_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import Decoded, decode
from glo_core.dataset_format.manifest import MANIFEST, ManifestRecord, block_path, manifest_path
from glo_core.dataset_format.records import read_config, schema_metadata
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.common.ray_data import unregister_pickled_objects
from pipelines.preprocess.containers import is_container, list_members, read_ahead, read_members
from pipelines.preprocess.content_index import ContentIndex
from pipelines.preprocess.plan import is_done, plan_path, read_plan
from pipelines.preprocess.sources import foreign_data, place_of, read_file

Content = bytes | RejectedImageError
"""What reading a file gave"""


class TaskReport(NamedTuple):
    """What a task reports."""

    files: int
    """Rows of its block"""
    bytes: int
    """Bytes of the files that it read"""
    error: str
    """One line, or "" """


def decode_block(task: dict[str, Any], contents: Any) -> dict[str, Any]:
    """Decode one row group of a plan into one block and its part of the manifest. Runs in a Ray task.

    A retry is harmless: file names are fixed, a file appears whole or not at all, and a block that is there is skipped.

    Args:
        task: `dataset`, `number` and `plan_id` of the plan, `block` (its number).
        contents: Ray's reference to the `ContentIndex` of the snapshots before.

    Returns:
        A `TaskReport` as a dict, Ray Data's row.
    """
    unregister_pickled_objects()
    dataset, number, block = Location(task["dataset"]), int(task["number"]), int(task["block"])
    try:
        return _decode_block(dataset, number, task["plan_id"], block, contents)._asdict()
    except UserError as error:  # An exception of a task would reach the user as Ray's traceback.
        return TaskReport(0, 0, str(error))._asdict()
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        return TaskReport(0, 0, f"{error.filename or dataset}: {reason}")._asdict()


def _decode_block(dataset: Location, number: int, plan_id: str, block: int, reference: Any) -> TaskReport:
    config, plan = read_config(dataset), read_plan(plan_path(dataset, number))
    if plan.record.plan_id != plan_id:
        raise DatasetError(f"{plan.path}: another writer has replaced it; run the same command again")
    if is_done(dataset, plan, block):
        return TaskReport(plan.block_rows[block], 0, "")
    files = open_parquet(plan.path, DatasetError).read_row_group(block)
    import ray

    builder = BlockBuilder(files, config, ray.get(reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata.
        for row, content in _read_all(files, plan.record.sources):
            builder.add(row, content)
    builder.resolve_duplicates()
    place = block_path(dataset, number, block)
    ids, held_out = files.column("image_id").to_numpy(), np.asarray(files.column("held_out"))
    # int64 [images]: the rows of the plan's group that are images
    rows = np.flatnonzero(builder.is_image)
    pixels = builder.pixels if len(rows) == len(ids) else builder.pixels[rows]
    entry = write_block(place, ids[rows], pixels, held_out[rows], config.code_shards)
    schema = MANIFEST.with_metadata(schema_metadata(ManifestRecord(plan_id=plan_id, block=entry)))
    with atomic_write(manifest_path(dataset, number, block)) as temporary:
        pq.write_table(builder.manifest(place.name).cast(schema), temporary)
    return TaskReport(len(ids), sum(size or 0 for size in builder.sizes), "")


# ---------------------------------------------------------------- reading


def _read_all(files: Any, bases: dict[str, str]) -> Iterator[tuple[int, Content]]:
    """The bytes of every file of a row group: (row, what reading gave). Members of a container come together."""
    sources, paths = files.column("source").to_pylist(), files.column("path").to_pylist()
    if files.column("member").null_count == len(files):
        members = [None] * len(files)
    else:
        members = files.column("member").to_pylist()
    places = {name: Location(base) for name, base in bases.items()}
    sizes = files.column("bytes").to_pylist()
    by_container: dict[tuple[str, bytes], list[int]] = {}
    remote = []
    for row, (source, path, member) in enumerate(zip(sources, paths, members, strict=True)):
        if member is not None:
            by_container.setdefault((source, path), []).append(row)
        elif places[source].remote or is_uri(os.fsdecode(path)):
            remote.append(row)
        else:
            yield row, _read(places[source], path, sizes[row])
    read = read_ahead(lambda row: _read(places[sources[row]], paths[row], sizes[row]), remote)
    yield from zip(remote, read, strict=True)
    if by_container:
        starts, lengths = files.column("start").to_numpy(), files.column("length").to_numpy()
        for (source, path), member_rows in by_container.items():
            yield from _read_container(places[source], path, member_rows, starts[member_rows], lengths[member_rows])


def _read(base: Location, path: bytes, size: int) -> Content:
    try:
        if is_container(path):  # Without a member, since there was none when it was listed: say why.
            with foreign_data("missing"):
                place = place_of(base, path)
            with foreign_data("broken container"):
                members = list_members(place)
            detail = f"damaged behind {len(members.names)} images" if members.damaged else "changed since it was listed"
            raise RejectedImageError("broken container", detail)
        return read_file(base, path, size)
    except RejectedImageError as error:
        return error


def _read_container(
    base: Location, path: bytes, rows: Sequence[int], starts: Int64Array, lengths: Int64Array
) -> Iterator[tuple[int, Content]]:
    """Members of the container at `path`: `rows`, `starts` and `lengths` have one entry for each."""
    unread = set(rows)
    try:
        with foreign_data("broken container"):
            contents = read_members(place_of(base, path), starts.tolist(), lengths.tolist())
        while True:
            with foreign_data("broken container"):  # Around reading alone: what the caller raises is not the file's.
                index, data = next(contents, (-1, b""))
            if index < 0:
                break
            unread.remove(rows[index])
            yield rows[index], data
    except RejectedImageError as error:
        yield from ((row, error) for row in sorted(unread))


# ---------------------------------------------------------------- what became of each file


class Rejection(NamedTuple):
    """Why a file is no image of the dataset."""

    reason: str
    detail: str
    """What the library said, or "" """


class BlockBuilder:
    """The pixels and the manifest's rows of one block, row by row of its plan."""

    def __init__(self, files: Any, config: ResolvedDatasetConfig, contents: ContentIndex) -> None:
        """Build from `files`, the n rows of a row group of the plan as a `pyarrow.Table`."""
        self._files, self._config, self._contents = files, config, contents
        count, side = len(files), config.resolution
        self.pixels = np.empty((count, side, side, config.channels), np.uint8)
        """uint8 `[n, H, W, C]`; undefined in rows that are no image"""
        self.sizes: list[int | None] = [None] * count
        """Bytes of each row's file; None where it could not be read"""
        self._hashes: list[bytes | None] = [None] * count
        self._shapes: list[tuple[int, int] | None] = [None] * count
        self._rejected: dict[int, Rejection] = {}
        self._duplicates: dict[int, int] = {}
        """By row, the id of the image with the same bytes or the same pixels"""
        self._decoded: dict[bytes, bytes] = {}
        """By content hash, the pixel hash of the files that were decoded"""
        self._pixel_hashes: list[bytes | None] = [None] * count
        self._same: dict[bytes, list[int]] = {}
        """By pixel hash, the rows with these pixels; the first of them has been decoded"""

    def add(self, row: int, content: Content) -> None:
        """Hash and decode the file of one row."""
        if isinstance(content, RejectedImageError):
            self._reject(row, content)
            return
        content_hash = digest(content)
        self.sizes[row], self._hashes[row] = len(content), content_hash
        if content_hash in self._decoded:
            self._same[self._decoded[content_hash]].append(row)
            return
        original = self._contents.id_of(content_hash)
        if original is not None:
            self._duplicates[row] = original
            return
        try:
            with foreign_data("broken"):
                decoded = decode(content, self._config)
        except RejectedImageError as error:
            self._reject(row, error)
            return
        self._add_pixels(row, content_hash, decoded)

    def _add_pixels(self, row: int, content_hash: bytes, decoded: Decoded) -> None:
        """Enter one decoded image, unless the dataset has its pixels from a file of other bytes."""
        # Of the pixels as they are stored, which are few: hashing the file's own, as large as they are, would cost as
        # much as decoding them, and a JPEG is not decoded in full.
        pixel_hash = digest(np.ascontiguousarray(decoded.pixels).tobytes())
        original = self._contents.id_of_pixels(pixel_hash)
        if original is not None:
            self._duplicates[row] = original
            return
        self._decoded[content_hash] = pixel_hash
        rows = self._same.setdefault(pixel_hash, [])
        rows.append(row)
        self._shapes[row] = (decoded.width, decoded.height)
        if len(rows) == 1:
            self.pixels[row] = decoded.pixels

    def _reject(self, row: int, error: RejectedImageError) -> None:
        self._rejected[row] = Rejection(error.reason, error.detail)

    def resolve_duplicates(self) -> None:
        """Of equal pixels make the lowest id the image, in whatever order they were read."""
        ids = self._files.column("image_id").to_numpy()
        for pixel_hash, rows in self._same.items():
            lowest = min(rows)
            self._pixel_hashes[lowest] = pixel_hash
            if len(rows) > 1:
                self.pixels[lowest] = self.pixels[rows[0]]
                self._shapes[lowest] = self._shapes[lowest] or self._shape_of_same_bytes(lowest, rows)
                self._duplicates |= {row: int(ids[lowest]) for row in rows if row != lowest}

    def _shape_of_same_bytes(self, row: int, rows: Sequence[int]) -> tuple[int, int] | None:
        """Width and height of the file of `row`, which was not decoded, since another of `rows` has its bytes."""
        return next(self._shapes[i] for i in rows if self._hashes[i] == self._hashes[row] and self._shapes[i])

    @property
    def is_image(self) -> BoolArray:
        """Whether each row is an image of the dataset, bool `[n]`."""
        is_image = np.ones(len(self._files), np.bool_)
        is_image[[*self._rejected, *self._duplicates]] = False
        return is_image

    def manifest(self, block: str) -> Any:
        """The part of the manifest of the block named `block`, as a `pyarrow.Table` of n rows."""
        files, count, is_image = self._files, len(self._files), self.is_image
        shapes = [shape if shape and ok else (None, None) for shape, ok in zip(self._shapes, is_image, strict=True)]
        status = np.where(is_image, "image", "duplicate").astype(object)
        status[list(self._rejected)] = "rejected"
        columns = {name: files.column(name) for name in ("image_id", "source", "path", "mtime_ns")} | {
            "member": files.column("member"),
            "label": _labels(files),
            "bytes": self.sizes,
            "content_hash": self._hashes,
            "pixel_hash": self._pixel_hashes,
            "width": [width for width, _ in shapes],
            "height": [height for _, height in shapes],
            "split": np.where(files.column("held_out"), "holdout", "train"),
            "block": [block if ok else None for ok in is_image],
            "status": status,
            "reason": _by_row(count, {row: rejection.reason for row, rejection in self._rejected.items()}),
            "detail": _by_row(count, {row: rejection.detail or None for row, rejection in self._rejected.items()}),
            "duplicate_of": _by_row(count, self._duplicates),
        }
        arrays = [
            values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)
            for field, values in ((field, columns[field.name]) for field in MANIFEST)
        ]
        return pa.table(arrays, names=MANIFEST.names)


def _by_row(count: int, values: dict[int, Any]) -> list[Any]:
    """A column of `count` rows with `values` at their rows, and None elsewhere."""
    column = [None] * count
    for row, value in values.items():
        column[row] = value
    return column


def _labels(files: Any) -> list[str]:
    """Of each row what its container says, else the first folder below the source."""
    labels = files.column("label").to_pylist()
    return [
        label if label is not None else _first_folder(path)
        for label, path in zip(labels, files.column("path").to_pylist(), strict=True)
    ]


def _first_folder(path: bytes) -> str:
    first, slash, _ = path.partition(b"/")
    return os.fsdecode(first).encode(errors="replace").decode() if slash and not is_uri(os.fsdecode(path)) else ""
