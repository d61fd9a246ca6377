"""The pages of a Parquet column, by their headers: how large each becomes, before anything is decompressed.

The footer may say anything, and a dictionary makes large values of a few bytes; the header of a page is what the reader
itself goes by. Headers are structs in Thrift's compact encoding.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from glo_core.dataset_format.rejection import RejectedImageError

DICTIONARY_PAGE = 2
"""Type of a page, as Parquet numbers them"""
HEADER_BYTES, MAX_HEADER_BYTES = 1 << 12, 1 << 20
"""Bytes of a header that are read at first, and at most"""
MAX_NESTING = 16
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BYTES, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12


class Page(NamedTuple):
    """One page of a column of a row group."""

    is_dictionary: bool
    bytes: int
    """When it is decompressed"""
    stored: int
    """Bytes in the file"""
    values: int
    """Rows, or entries of a dictionary"""


def pages(source: Any, column: Any) -> Iterator[Page]:
    """The pages of a column of a row group, in order.

    Args:
        source: the file, a seekable `pyarrow.NativeFile`.
        column: a `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        RejectedImageError: at a header that cannot be read.
    """
    offset = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < offset:
        offset = column.dictionary_page_offset
    end = min(offset + column.total_compressed_size, source.size())
    rows = 0
    while offset < end and rows < column.num_values:
        header = _header(source, offset, end)
        page = Page(header.type == DICTIONARY_PAGE, header.uncompressed, header.compressed, header.values)
        yield page
        rows += 0 if page.is_dictionary else page.values
        offset += header.length + header.compressed


class _Header(NamedTuple):
    type: int
    uncompressed: int
    compressed: int
    values: int
    length: int


def _header(source: Any, offset: int, end: int) -> _Header:
    size = HEADER_BYTES
    while True:
        reader = _Compact(bytes(source.read_at(min(size, end - offset), offset)))
        try:
            fields = reader.struct()
        except IndexError:
            if size >= min(MAX_HEADER_BYTES, end - offset):
                raise RejectedImageError("broken container", f"byte {offset}: no header of a page") from None
            size *= 16
            continue
        details = [fields[field] for field in (5, 7, 8) if isinstance(fields.get(field), dict)]
        values = details[0].get(1, 0) if details else 0
        kind, uncompressed, compressed = (fields.get(field, 0) for field in (1, 2, 3))
        if not all(isinstance(number, int) and number >= 0 for number in (kind, uncompressed, compressed, values)):
            raise RejectedImageError("broken container", f"byte {offset}: no header of a page")
        return _Header(kind, uncompressed, compressed, values, reader.position)


class _Compact:
    """Reads Thrift's compact encoding; IndexError where the bytes end, or nest too deep."""

    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Integers and structs by the numbers of their fields; of other values only the place is passed."""
        if depth > MAX_NESTING:
            raise IndexError
        fields, field = dict[int, Any](), 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self._integer()
            fields[field] = self._value(byte & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._value(_BYTE if head & 15 in _BOOLEANS else head & 15, depth + 1)
        elif kind not in _BOOLEANS:
            self._skip({_BYTE: 1, _DOUBLE: 8}.get(kind) or self._length(kind))
        return None

    def _length(self, kind: int) -> int:
        if kind != _BYTES:  # Pages' headers have no maps.
            raise IndexError
        return self._varint()

    def _skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self._data):
            raise IndexError

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise IndexError

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
