"""What became of each file of a block: its pixels, or why it has none; and its row of the manifest."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from glo_core.common.arrays import BoolArray
from glo_core.common.digests import digest
from glo_core.common.location import is_uri
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import Decoded
from glo_core.dataset_format.manifest import MANIFEST
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.content_index import ContentIndex
from pipelines.preprocess.reading import NotLoadedError

Content = bytes | RejectedImageError
"""What reading a file gave"""
Decoder = Callable[[bytes], Decoded]
"""`decode` for one policy; raises `RejectedImageError`, and nothing else for a foreign file"""


class Rejection(NamedTuple):
    """Why a file is no image of the dataset."""

    reason: str
    detail: str
    """What the library said, or "" """


class BlockBuilder:
    """The pixels and the manifest's rows of one block, row by row of its plan."""

    def __init__(self, files: Any, config: ResolvedDatasetConfig, contents: ContentIndex, decoder: Decoder) -> None:
        """Build from `files`, the n rows of a row group of the plan as a `pyarrow.Table`."""
        self._files, self._config, self._contents, self._decode = files, config, contents, decoder
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
            if isinstance(content, NotLoadedError):
                self.sizes[row], self._hashes[row] = content.size, content.content_hash
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
            decoded = self._decode(content)
        except RejectedImageError as error:
            self._reject(row, error)
            return
        self._add_pixels(row, content_hash, decoded)

    def _add_pixels(self, row: int, content_hash: bytes, decoded: Decoded) -> None:
        """Enter one decoded image, unless the dataset has its pixels from a file of other bytes."""
        # Of the pixels as they are stored, which are few: hashing the file's own, as large as they are, would cost as
        # much as decoding them, and a JPEG is not decoded in full.
        pixel_hash = digest(np.ascontiguousarray(decoded.pixels).reshape(-1).data)
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
