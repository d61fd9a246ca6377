"""Files that hold many images: tar shards in WebDataset's layout, Parquet tables with a column of encoded images."""

import functools
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from glo_core.common.arrow_files import parquet_file
from glo_core.common.location import Location
from glo_core.dataset_format.image_decoding import SUFFIXES
from glo_core.dataset_format.rejection import Reason, RejectedImageError

TAR, PARQUET = b".tar", b".parquet"
CONTAINER_ENDINGS = (TAR, PARQUET, TAR.upper(), PARQUET.upper())
REQUESTS = 16
"""Requests to an object store that one task has under way"""
TAR_BUFFER = 1 << 20
"""Bytes read ahead of the tar headers: one request to an object store."""


class Members(NamedTuple):
    """The images of a container, column by column."""

    names: list[bytes]
    """Of a tar member its name, of a table's row its number"""
    starts: list[int]
    """Byte at which a tar member begins; a table's row number"""
    lengths: list[int]
    """Bytes of a tar member; -1 in a table, where only reading tells"""
    labels: list[str | None]
    damaged: bool = False
    """Whether something behind these cannot be read"""


def is_container(path: bytes) -> bool:
    """Whether a file of this name holds many images."""
    return path.endswith(CONTAINER_ENDINGS)


def list_members(place: Location) -> Members:
    """The images that a container holds, without reading one.

    Raises:
        RejectedImageError: if it is damaged, or holds no image.
    """
    try:
        is_tar = place.name.lower().endswith(os.fsdecode(TAR))
        members = _list_tar(place) if is_tar else _list_table(place)
    except FileNotFoundError:
        raise RejectedImageError("missing") from None
    except PermissionError as error:
        raise RejectedImageError("unreadable", error.strerror or "") from None
    except (tarfile.TarError, pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise RejectedImageError(_failure(place, error), str(error)) from None
    if not members.names and not members.damaged:
        raise RejectedImageError("no image inside")
    return members


def _failure(place: Location, error: Exception) -> Reason:
    """Why a container cannot be read: a store that does not answer for a moment is no damage."""
    no_answer = isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and place.remote
    return "unreadable" if no_answer else "broken container"


def read_members(
    place: Location, starts: Sequence[int], lengths: Sequence[int]
) -> Iterator[tuple[int, bytes | RejectedImageError]]:
    """The bytes of members, in the order in which they lie: (index into `starts`, what reading gave).

    Args:
        starts, lengths: of each member, as `Members` has them.

    Raises:
        RejectedImageError: if the container is gone or damaged, at the first member concerned.
    """
    order = sorted(range(len(starts)), key=starts.__getitem__)
    try:
        if place.name.lower().endswith(os.fsdecode(TAR)):
            with place.open() as file:
                read = functools.partial(_read_member, file, starts, lengths)
                yield from zip(order, read_ahead(read, order) if place.remote else map(read, order), strict=True)
        else:
            yield from _read_rows(place, starts, order)
    except FileNotFoundError:
        raise RejectedImageError("missing") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RejectedImageError(_failure(place, error), str(error)) from None


Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`read` of every item, in order, with `REQUESTS` of them under way and their results a few ahead."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        for first in range(0, len(items), 4 * REQUESTS):
            yield from pool.map(read, items[first : first + 4 * REQUESTS])


# ---------------------------------------------------------------- tar


def _read_member(file: Any, starts: Sequence[int], lengths: Sequence[int], index: int) -> bytes:
    return bytes(file.read_at(lengths[index], starts[index]))


def _list_tar(place: Location) -> Members:
    """WebDataset's layout: the files of a sample share what stands before the first dot of the last part."""
    labels: dict[bytes, str] = {}
    images: list[tuple[bytes, int, int]] = []
    with place.open() as file, tarfile.open(fileobj=_buffered(file, place), mode="r:") as archive:
        for member in archive:
            name = os.fsencode(member.name)
            if not member.isreg() or os.path.basename(name).startswith(b"."):
                continue
            ending = os.path.splitext(name)[1].lower()
            if os.fsdecode(ending) in SUFFIXES:
                images.append((name, member.offset_data, member.size))
            elif ending == b".cls" and (content := archive.extractfile(member)) is not None:
                labels[_sample(name)] = content.read(256).decode(errors="replace").strip()
        # The archive ends with a block of zeros. tarfile also stops, without a word, at a header that is damaged.
        damaged = file.size() > archive.offset and any(file.read_at(512, archive.offset))
    return Members(
        [name for name, _, _ in images],
        [start for _, start, _ in images],
        [length for _, _, length in images],
        [labels.get(_sample(name)) for name, _, _ in images],
        damaged,
    )


def _sample(name: bytes) -> bytes:
    """What the files of one sample share: the name up to the first dot of its last part."""
    folder, _, last = name.rpartition(b"/")
    return folder + b"/" + last.split(b".", 1)[0]


def _buffered(file: Any, place: Location) -> Any:
    return io.BufferedReader(file, TAR_BUFFER) if place.remote else file


# ---------------------------------------------------------------- Parquet


def _list_table(place: Location) -> Members:
    file = parquet_file(place.open())
    _image_column(file.schema_arrow)
    rows = file.metadata.num_rows
    labels: list[str | None] = [None] * rows
    if "label" in file.schema_arrow.names:
        values = file.read(["label"]).column("label").to_pylist()
        labels = [None if value is None else str(value) for value in values]
    return Members([str(row).encode() for row in range(rows)], list(range(rows)), [-1] * rows, labels)


def _image_column(schema: Any) -> str:
    """The column of encoded images: as Hugging Face declares it, else a struct with `bytes`, else one of bytes."""
    declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = [
        name for name, feature in declared.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    names = [name for name in names if name in schema.names and _holds_bytes(schema.field(name).type)]
    names += [field.name for field in schema if _holds_bytes(field.type)]
    names += [field.name for field in schema if _is_bytes(field.type)]
    for name in names:
        if name in schema.names:
            return str(name)
    raise RejectedImageError("no image inside", "no column of encoded images")


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_bytes(kind: Any) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)


def _read_rows(
    place: Location, rows: Sequence[int], order: Sequence[int]
) -> Iterator[tuple[int, bytes | RejectedImageError]]:
    """`rows` of a table in `order`, which sorts them; see `read_members`."""
    file = parquet_file(place.open())
    column, first, position = _image_column(file.schema_arrow), 0, 0
    for group in range(file.metadata.num_row_groups):
        # This row group holds the table's rows from `first` to before `end`.
        end = first + file.metadata.row_group(group).num_rows
        indices = []
        while position < len(order) and rows[order[position]] < end:
            indices.append(order[position])
            position += 1
        if indices:
            try:
                values = file.read_row_group(group, [column]).column(0)
            except (pa.ArrowException, OSError) as error:  # The other groups may be whole.
                failure = RejectedImageError(_failure(place, error), f"row group {group}: {error}")
                yield from ((index, failure) for index in indices)
                indices = []
            for index in indices:
                value = values[rows[index] - first].as_py()
                yield index, (value.get("bytes") if isinstance(value, dict) else value) or b""
        first = end
    if position < len(order):
        raise RejectedImageError("missing", "the table has fewer rows than it had")
