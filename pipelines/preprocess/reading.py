"""The bytes of foreign files: a file's first bytes decide whether the rest is loaded, and no error gets through."""

import errno
import os
from typing import Any

from glo_core.common.digests import DIGEST_BYTES, digest, new_hasher
from glo_core.common.files import open_regular
from glo_core.common.location import Location
from glo_core.dataset_format.pixels.headers import HEAD_BYTES, format_of
from glo_core.dataset_format.rejection import Reason, RejectedImageError
from pipelines.preprocess.sources import locate

LOADED_AT_ONCE = 256 << 10
"""Bytes up to which a file is loaded before its first bytes are looked at: one request to an object store"""
PIECE = 8 << 20
"""Bytes of a file that are in memory when it is hashed without being loaded"""


class NotLoadedError(RejectedImageError):
    """A file that is no image by its first bytes or its size, and was not loaded into memory."""

    def __init__(self, reason: Reason, detail: str, size: int, content_hash: bytes | None) -> None:
        """Say why, and what is known of the file.

        Args:
            size: bytes.
            content_hash: BLAKE3-128 of its bytes; None where it is larger than `max_bytes`, and was not read.
        """
        super().__init__(reason, detail)
        self.size, self.content_hash = size, content_hash


class foreign_data:  # noqa: N801  A block under it is entered for each file: a generator would take three times as long.
    """The border to foreign files: whatever the block raises is a rejection, for `reason` unless the error has another.

    Raises:
        RejectedImageError: and nothing else.
    """

    __slots__ = ("_reason",)

    def __init__(self, reason: Reason) -> None:
        self._reason: Reason = reason

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, RejectedImageError) or not isinstance(error, Exception):
            return
        raise _rejection(error, self._reason) from None


def _rejection(error: Exception, reason: Reason) -> RejectedImageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return RejectedImageError("missing")
    if isinstance(error, IsADirectoryError):
        return RejectedImageError("irregular")
    if isinstance(error, OSError) and error.errno == errno.ELOOP:  # A link that leads to itself
        reason = "missing"
    return RejectedImageError(reason, getattr(error, "strerror", None) or str(error) or type(error).__name__)


def read_file(base: Location, path: bytes, max_bytes: int) -> bytes:
    """The bytes of the file at `path` of a source, if it begins like an image; in memory once.

    Raises:
        NotLoadedError: if it begins otherwise, or is larger than `max_bytes`.
        RejectedImageError: if it is missing, unreadable or no regular file.
    """
    with _opened(base, path) as file, foreign_data("unreadable"):
        size = file.size()
        if size <= min(LOADED_AT_ONCE, max_bytes):
            data = file.read_at(size or LOADED_AT_ONCE, 0)  # Files of the kernel say that they have no bytes.
            if data and format_of(data) is None:
                raise NotLoadedError("unknown format", "", len(data), digest(data))
            return data
        if format_of(bytes(file.read_at(HEAD_BYTES, 0))) is None:
            raise NotLoadedError("unknown format", "", size, _hash(file, size) if size <= max_bytes else None)
        if size > max_bytes:
            raise NotLoadedError("too large", f"{size} bytes", size, None)
        return bytes(file.read_at(size, 0))


def hash_file(base: Location, path: bytes, max_bytes: int) -> bytes | None:
    """BLAKE3-128 of a file's bytes, in pieces; None where it cannot be read or is larger than `max_bytes`."""
    try:
        with _opened(base, path) as file, foreign_data("unreadable"):
            size = file.size()
            return _hash(file, size) if size <= max_bytes else None
    except RejectedImageError:
        return None


def require_readable(base: Location, path: bytes) -> None:
    """Raise `RejectedImageError` unless the file at `path` of a source can be opened and read."""
    with _opened(base, path) as file, foreign_data("unreadable"):
        file.read_at(1, 0)


def _hash(file: Any, size: int) -> bytes:
    hasher = new_hasher()
    for start in range(0, size, PIECE):
        hasher.update(file.read_at(min(PIECE, size - start), start))
    return bytes(hasher.digest(length=DIGEST_BYTES))


def _opened(base: Location, path: bytes) -> Any:
    """The file at `path` of a source: a context with `size()` and `read_at(nbytes, offset)`.

    Raises:
        RejectedImageError: as of `foreign_data`.
    """
    with foreign_data("missing"):
        place = locate(base, path)
    with foreign_data("unreadable"):
        return place.open() if isinstance(place, Location) else _LocalFile(place)


class _LocalFile:
    """A regular file of this machine, with the words of `pyarrow.NativeFile`; it is not mapped: it may shrink."""

    def __init__(self, path: bytes) -> None:
        descriptor = open_regular(path)
        if descriptor is None:
            raise RejectedImageError("irregular")
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size

    def __enter__(self) -> "_LocalFile":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def size(self) -> int:
        return self._size

    def read_at(self, nbytes: int, offset: int) -> bytes:
        """At most `nbytes` bytes from `offset` on; fewer only at the end."""
        whole = os.pread(self._descriptor, nbytes, offset)
        if len(whole) == nbytes:
            return whole
        parts = [whole]
        while parts[-1] and (missing := nbytes - sum(map(len, parts))):  # One call gives at most 2 GiB.
            parts.append(os.pread(self._descriptor, missing, offset + nbytes - missing))
        return parts[0] if len(parts) == 1 else b"".join(parts)
