"""Parquet and Arrow files, read through one gate, so that no file runs code.

An Arrow extension type is a Python class that makes objects of a column's values. `import ray.data` registers one that
unpickles them, so that reading such a column runs whatever the author of the file put in. Extension types are therefore
refused by the schema, at any depth and before a value is read. They are refused by name too, where this process has not
registered them: what is read does not depend on what else was imported.
"""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from glo_core.common.arrays import Int64Array
from glo_core.common.errors import UserError
from glo_core.common.files import not_whole
from glo_core.common.location import Location

_OF_THE_MACHINE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN, errno.EHOSTUNREACH}
"""Errors of a disk or a mount, which say nothing about the file"""

EXTENSION_NAME = b"ARROW:extension:name"
"""The metadata key of a field whose extension type this process has not registered"""
MAX_SCHEMA_ELEMENTS = 2000
"""Columns of a Parquet file, with those within others and the levels of nesting"""


def open_parquet(place: Path | Location, error: type[UserError] = UserError) -> Any:
    """Open a Parquet file as a `pyarrow.parquet.ParquetFile`.

    Raises:
        UserError: `error`, if the file is missing, not whole, or has a column of an extension type.
    """
    try:
        file = parquet_file(Location(place).open())
        refused = extension_type(file.schema_arrow)
    except Exception as cause:
        raise _unreadable(place, "Parquet", cause, error) from None
    _refuse(place, refused, error)
    return file


def read_parquet(
    place: Path | Location, columns: Sequence[str] | None = None, error: type[UserError] = UserError
) -> Any:
    """Read `columns` (None: all) of a Parquet file as a `pyarrow.Table`.

    Raises:
        UserError: as of `open_parquet`, or if a column is missing.
    """
    file = open_parquet(place, error)
    _require_columns(place, file.schema_arrow.names, columns, error)
    try:
        return file.read(columns)
    except Exception as cause:
        raise _unreadable(place, "Parquet", cause, error) from None


def open_arrow(place: Path | Location, error: type[UserError] = UserError) -> Any:
    """Open an Arrow IPC file as a `pyarrow.RecordBatchFileReader`, a local one mapped; errors as of `open_parquet`."""
    try:
        reader = pa.ipc.open_file(Location(place).open())
        refused = extension_type(reader.schema)
    except Exception as cause:
        raise _unreadable(place, "Arrow", cause, error) from None
    _refuse(place, refused, error)
    return reader


def read_arrow(place: Path | Location, columns: Sequence[str] | None = None, error: type[UserError] = UserError) -> Any:
    """Read `columns` (None: all) of an Arrow IPC file as a `pyarrow.Table`, of a local one without a copy.

    Raises:
        UserError: as of `open_parquet`, or if a column is missing.
    """
    reader = open_arrow(place, error)
    _require_columns(place, reader.schema.names, columns, error)
    try:
        table = reader.read_all()
        table.validate()  # A damaged length must not lead beyond the file.
    except Exception as cause:
        raise _unreadable(place, "Arrow", cause, error) from None
    return table if columns is None else table.select(columns)


def parquet_file(source: Any, *, buffer_size: int = 0, dictionaries: Sequence[str] = ()) -> Any:
    """An open file of any origin as a `pyarrow.parquet.ParquetFile`, without a look at its types.

    No column of it may be read before `extension_type` has passed it.

    Args:
        source: a seekable `pyarrow.NativeFile`.
        buffer_size: bytes of each column that are read ahead; 0 reads a row group's whole column at once.
        dictionaries: columns of bytes or text that are read as dictionaries, so that what repeats is there once.
    """
    # The limit holds for the list of row groups too: so only where the schema needs it.
    most_items = None if _has_small_schema(source) else MAX_SCHEMA_ELEMENTS
    # Without the switch, a plain column whose Parquet type is UUID or JSON would become an extension type.
    return pq.ParquetFile(
        source,
        buffer_size=buffer_size,
        pre_buffer=False,
        read_dictionary=list(dictionaries),
        arrow_extensions_enabled=False,
        thrift_container_size_limit=most_items,
    )


def _has_small_schema(source: Any) -> bool:
    """Whether a Parquet file's schema has few elements: pyarrow overflows the stack at 16,000 levels of nesting.

    The footer begins with the version, an i32, and the schema, a list, in Thrift's compact encoding. The number of the
    list's elements stands in four bits of its header, or behind it if there are 15 and more.
    """
    size = source.size()
    length = int.from_bytes(source.read_at(8, max(size - 8, 0))[:4], "little")
    footer = bytes(source.read_at(16, size - 8 - length)) if 16 <= length <= size - 8 else bytes(16)
    if footer[0] != 0x15 or footer[1] > 127 or footer[2] != 0x19:
        return False
    if footer[3] >> 4 < 15 or footer[4] < 128:
        return True
    return footer[5] < 128 and footer[5] * 128 + footer[4] - 128 <= MAX_SCHEMA_ELEMENTS


def extension_type(fields: Iterable[Any]) -> str | None:
    """The first extension type in `fields` (each a `pyarrow.Field`) at any depth, as "column (type)", or None."""
    pending = [(field.name, field) for field in fields]
    while pending:
        path, field = pending.pop()
        name = (field.metadata or {}).get(EXTENSION_NAME)
        if name is not None:
            return f"{path} ({name.decode(errors='replace')})"
        if isinstance(field.type, pa.BaseExtensionType):
            return f"{path} ({field.type.extension_name})"
        pending += [(path, child) for child in _children(field.type)]
    return None


def _children(kind: Any) -> list[Any]:
    """The fields that a `pyarrow.DataType` is made of: of a struct, list, map, union, dictionary, run-end encoding."""
    if pa.types.is_dictionary(kind):
        return [pa.field("values", kind.value_type)]
    return [kind.field(index) for index in range(kind.num_fields)]


def int64_values(column: Any, *, null: int = -1) -> Int64Array:
    """A column of integers as NumPy, int64 `[n]`, with nulls as `null`: pyarrow itself would make floats of them."""
    return column.cast(pa.int64()).fill_null(null).to_numpy()


def _unreadable(place: Path | Location, kind: str, cause: Exception, error: type[UserError]) -> Exception:
    """What to raise of a file that cannot be read: the machine's errors stay as they are, since a retry may succeed."""
    if isinstance(cause, FileNotFoundError):
        return error(f"{place}: no such file; copy it back")
    if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
        return cause
    return error(not_whole(place, kind, cause))


def _require_columns(
    place: Path | Location, names: Sequence[str], columns: Sequence[str] | None, error: type[UserError]
) -> None:
    """Raise `error` if one of `columns` is not among a file's `names`."""
    for name in columns or ():
        if name not in names:
            raise error(f"{place}: has no column {name}; copy the file back")


def _refuse(place: Path | Location, column: str | None, error: type[UserError]) -> None:
    if column is not None:
        raise error(
            f"{place}: column {column} is of an Arrow extension type, which is not read since it may run code; "
            "copy the file back from where it was made"
        )
