"""The headers of an uncompressed tar, one after the other: old, POSIX, GNU and pax.

Python's `tarfile` parses each block of 512 bytes. It does not walk: it recurses at each extension header, stops without
a word at the end of the first of several concatenated archives, and can go backwards at a negative size.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Kind = Literal["file", "hard link", "symbolic link", "folder", "other"]
BLOCK = 512
MAX_EXTENSION_BYTES = 16 << 20
"""Bytes of a long name or of pax records that are read at most"""
RECORDS, SPARSE, SPARSE_NAME = (b"path", b"linkpath", b"size"), b"GNU.sparse.", b"GNU.sparse.name"
"""Keys of pax records that are kept; of those of a sparse file the name, and that there is one"""
MAX_VALUE_BYTES = 4096
"""Bytes of a pax record's value that count: no path is longer"""
MAX_SIZE = 1 << 62
"""Bytes that no entry has: offsets and sizes are int64"""
READ_AHEAD = 1 << 20
"""Bytes that are read at once: one request to an object store"""
ZEROS = 1 << 20
"""Bytes that are read at once where only zeros were met"""
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.DIRTYPE: "folder",
}
"""By the type of a header; every other type is `other`"""
SPARSE_MAP_GOES_ON, MORE_OF_SPARSE_MAP = 482, 504
"""Byte of a sparse file's header, and of a block of its map, that is not 0 where another block follows"""


class Entry(NamedTuple):
    """One entry of a tar."""

    name: bytes
    kind: Kind
    header: int
    """Byte at which its first header begins"""
    start: int
    """Byte at which its content begins"""
    size: int
    """Bytes of content that the archive holds"""
    sparse: bool
    """Whether the content is stored without its holes"""
    target: bytes
    """What a link leads to: a hard one from the archive's root, a symbolic one from its own folder"""


class DamagedTarError(Exception):
    """A header that cannot be read; the entries before it are whole."""


class ReadAt(io.RawIOBase):
    """A `pyarrow.NativeFile` at a position of its own, so that several threads can read one file."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._position, self.size = file, 0, int(file.size())

    def readable(self) -> bool:
        """True, as `io` asks."""
        return True

    def seekable(self) -> bool:
        """True, as `io` asks."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; errors as of `io`."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        data = self._file.read_at(min(len(buffer), max(self.size - self._position, 0)), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Extensions:
    """What extension headers say of the entry that follows them."""

    def __init__(self) -> None:
        self.header: int | None = None
        """Byte at which the first of them begins; None where there is none"""
        self.name = self.target = b""
        """Of GNU's headers"""
        self.records: dict[bytes, bytes] = {}
        """Of pax headers"""


def tar_entries(file: Any) -> Iterator[Entry]:
    """The entries of a tar and of those that are concatenated to it, as `tar --ignore-zeros` meets them.

    Args:
        file: a seekable `pyarrow.NativeFile`.

    Raises:
        DamagedTarError: at a header that cannot be read, or behind a member that the end of the file cuts.
    """
    raw = ReadAt(file)
    reader, offset, of_all = io.BufferedReader(raw, READ_AHEAD), 0, dict[bytes, bytes]()
    extensions = _Extensions()
    while (header := _skip_zeros(reader, offset, raw.size)) < raw.size:
        info = _parse(_read(reader, header, BLOCK), header)
        data = header + BLOCK
        if info.type in EXTENSIONS:
            offset = data + _whole_blocks(info.size)
            content = _read(reader, data, min(info.size, MAX_EXTENSION_BYTES + 1))
            if len(content) < info.size:
                raise DamagedTarError(f"byte {header}: an extension header of {info.size} bytes")
            extensions.header = header if extensions.header is None else extensions.header
            _extend(extensions, of_all, info.type, content)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            data = _skip_sparse_map(reader, data, more=info.isextended)
        entry = _entry(info, extensions, of_all, header, data)
        yield entry
        offset, extensions = data + _whole_blocks(entry.size), _Extensions()
        if data + entry.size > raw.size:
            raise DamagedTarError(f"byte {header}: the file ends within {os.fsdecode(entry.name)}")
    if extensions.header is not None:
        raise DamagedTarError(f"byte {extensions.header}: an extension header without its entry")


def _read(reader: Any, offset: int, size: int) -> bytes:
    reader.seek(offset)
    return reader.read(size)


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _skip_zeros(reader: Any, offset: int, end: int) -> int:
    """The next block from `offset` on that is not all zeros, or `end`."""
    step = BLOCK
    while offset < end:
        chunk = _read(reader, offset, step)
        content = chunk.lstrip(b"\0")
        if content or not chunk:
            return offset + (len(chunk) - len(content)) // BLOCK * BLOCK if chunk else end
        offset, step = offset + len(chunk), ZEROS
    return end


class _Header(NamedTuple):
    """What one block says."""

    name: bytes
    type: bytes
    size: int
    target: bytes
    isextended: bool
    """Whether another block of a sparse map follows"""


def _parse(block: bytes, offset: int) -> _Header:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedTarError(f"byte {offset}: no tar header ({error})") from None
    if not 0 <= info.size < MAX_SIZE:
        raise DamagedTarError(f"byte {offset}: a size of {info.size}")
    name, target = (text.encode("utf-8", "surrogateescape") for text in (info.name, info.linkname))
    return _Header(name, info.type, info.size, target, bool(block[SPARSE_MAP_GOES_ON]))


def _extend(extensions: _Extensions, of_all: dict[bytes, bytes], kind: bytes, content: bytes) -> None:
    """Enter what an extension header says; of several the last one counts."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        extensions.name = content.partition(b"\0")[0]
    elif kind == tarfile.GNUTYPE_LONGLINK:
        extensions.target = content.partition(b"\0")[0]
    elif kind == tarfile.XGLTYPE:
        of_all |= _pax_records(content)
    else:
        extensions.records |= _pax_records(content)


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Of the records `LENGTH KEY=VALUE` of a pax header, up to one that is none, those that this module reads."""
    records, position = dict[bytes, bytes](), 0
    while position < len(content):
        digits, space, _ = content[position : position + 20].partition(b" ")
        end = position + int(digits) if space and digits.isdigit() else position
        key, equals, value = content[position + len(digits) + 1 : end].partition(b"=")
        if end > len(content) or not equals or value[-1:] != b"\n":
            break
        position = end
        if key in RECORDS or key == SPARSE_NAME:
            records[key] = value[:-1] if len(value) <= MAX_VALUE_BYTES else b""
        if key.startswith(SPARSE):
            records[SPARSE] = b"1"
    return records


def _skip_sparse_map(reader: Any, offset: int, *, more: bool) -> int:
    """The byte behind the blocks in which GNU's old format continues the map of a sparse file."""
    while more:
        block = _read(reader, offset, BLOCK)
        if len(block) < BLOCK:
            raise DamagedTarError(f"byte {offset}: the file ends within the map of a sparse file")
        more, offset = bool(block[MORE_OF_SPARSE_MAP]), offset + BLOCK
    return offset


def _entry(info: _Header, extensions: _Extensions, of_all: dict[bytes, bytes], header: int, data: int) -> Entry:
    records = {key: value for key, value in (of_all | extensions.records).items() if value}
    name = records.get(SPARSE_NAME) or records.get(b"path") or extensions.name or info.name
    size = records.get(b"size", b"")
    return Entry(
        name,
        KINDS.get(info.type, "other"),
        header if extensions.header is None else extensions.header,
        data,
        0 if info.type in WITHOUT_CONTENT else int(size) if size.isdigit() and len(size) < 19 else info.size,
        info.type == tarfile.GNUTYPE_SPARSE or SPARSE in extensions.records,
        records.get(b"linkpath") or extensions.target or info.target,
    )
