"""Which column of a table holds the images: as Hugging Face declares, else by its name, else by the first bytes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from glo_core.common.arrow_files import extension_type
from glo_core.dataset_format.pixels.headers import format_of

USUAL_NAMES = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "picture", "photo", "image_bytes"),
    *("image_data", "img_bytes", "content", "bytes", "data"),
)
"""Names of columns of images, in any case of letters; of several the first one here"""
MAX_DEPTH = 4
"""Structs within structs that are looked into"""


class Column(NamedTuple):
    """A column of a table, or a field of a column of structs."""

    path: tuple[str, ...]
    """Name of the column, then of the field in its struct, and so on"""
    is_bytes: bool = True

    @property
    def usual_place(self) -> int:
        """Where its name stands among the usual ones; their number if it does not."""
        names = [name.lower() for name in self.path]
        names = names[:-1] if len(names) > 1 and names[-1] == "bytes" else names
        return USUAL_NAMES.index(names[-1]) if names[-1] in USUAL_NAMES else len(USUAL_NAMES)


def choose_column(schema: Any, first_values: Callable[[Column], Iterable[bytes]]) -> Column | None:
    """The column of encoded images, or None. One of an extension type is chosen by its name, to be refused.

    Args:
        schema: a `pyarrow.Schema`.
        first_values: gives some values of a column.
    """
    fields = [field for field in schema if field_of(schema, field.name) is not None]
    refused = [Column((field.name,)) for field in fields if extension_type([field]) is not None]
    columns = sorted(bytes_columns(field for field in fields if extension_type([field]) is None), key=_rank)
    declared = _declared_images(schema.metadata or {})
    for name in declared:
        for column in (*columns, *refused):
            if column.path[0] == name:
                return column
    spoiled = [column for column in refused if column.usual_place < len(USUAL_NAMES)]
    if spoiled or not columns:
        return next(iter([*spoiled, *refused]), None)
    for column in columns if len(columns) > 1 else ():
        if any(format_of(value) for value in first_values(column)):
            return column
    return columns[0]


def _rank(column: Column) -> tuple[int, bool]:
    """Usual names first, then structs with `bytes` as Hugging Face stores images."""
    return column.usual_place, column.path[1:] != ("bytes",)


def _declared_images(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Names of the columns that Hugging Face's metadata calls images; none where it is anything else."""
    try:
        values = json.loads(metadata.get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return []
    for key in ("info", "features"):
        values = values.get(key) if isinstance(values, dict) else None
    features = values.items() if isinstance(values, dict) else ()
    return [name for name, feature in features if isinstance(feature, dict) and feature.get("_type") == "Image"]


def field_of(schema: Any, name: str) -> Any:
    """The `pyarrow.Field` of that name, or None where there is none or more than one."""
    index = schema.get_field_index(name)
    return schema.field(index) if index >= 0 else None


def bytes_columns(fields: Iterable[Any]) -> list[Column]:
    """The columns of bytes among `fields`, and those within structs."""
    return [Column(path) for field in fields for path in _bytes_paths((field.name,), field.type)]


def _bytes_paths(path: tuple[str, ...], kind: Any) -> Iterator[tuple[str, ...]]:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_bytes(kind):
        yield path
    elif pa.types.is_struct(kind) and len(path) < MAX_DEPTH:
        for index in range(kind.num_fields):
            yield from _bytes_paths((*path, kind.field(index).name), kind.field(index).type)


def is_bytes(kind: Any) -> bool:
    """Whether values of this `pyarrow.DataType` are bytes."""
    types = pa.types
    return any(
        check(kind)
        for check in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    )
