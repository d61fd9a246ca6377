"""Files that are whole or absent: atomic writes, and the message about a file that is damaged.

Every format of the project is written through `atomic_write`: the bytes go to a temporary name beside the
final one, are flushed to the disk, and are renamed; then the directory is flushed. A reader sees a whole file or
none, after a power cut too.
"""

import contextlib
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glo_core.common.errors import DISK_FULL, UserError
from glo_core.common.location import Location

_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EACCES, errno.EPERM)
"""Of file systems whose directories cannot be flushed, and of directories that may be entered and not read"""


@contextlib.contextmanager
def atomic_write(place: Path | Location) -> Iterator[Path]:
    """Yield a temporary path; rename it to `place`, or upload it there, when the block ends without an error.

    Raises:
        UserError: if the disk is full, or a quota or a size limit is reached.
    """
    path = Location(place).path
    if path is None:
        with tempfile.TemporaryDirectory(prefix="glo-upload-") as scratch:
            temporary = Path(scratch) / "object"
            yield temporary
            Location(place).put(temporary)
        return
    # The host and process in the name keep two writers of the same file from sharing a temporary one.
    temporary = path.with_name(f".{path.name}.tmp-{socket.gethostname()}-{os.getpid()}")
    try:
        _make_directory(path.parent)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"{path}: {os.strerror(error.errno).lower()}; free some space and run the same command again, "
                "it goes on from what is already finished"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Flush the names in `directory` to the disk: without it, a power cut can undo a rename that was seen before."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _make_directory(directory: Path) -> None:
    """Make `directory` and those above it, and flush the names of the new ones to the disk."""
    if not directory.is_dir():
        _make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def open_regular(path: str | bytes) -> int | None:
    """A descriptor to read the local file at `path`; None if it is a pipe, a device or anything but a regular file.

    Raises:
        OSError: if it cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def sweep_temporary(directory: Path) -> None:
    """Delete what killed writers left in `directory`. Call it only while the directory is locked."""
    for path in directory.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def write_bytes(place: Path | Location, data: bytes) -> None:
    """Write `data` as the file `place`, whole or not at all; errors as of `atomic_write`."""
    with atomic_write(place) as temporary:
        temporary.write_bytes(data)


def not_whole(place: Path | Location, kind: str, error: Exception) -> str:
    """One line for the user about a file that is cut short or damaged."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{place}: not a whole {kind} file ({Location(place).size()} bytes; {reason}); copy it back"


def differences(old: dict[str, Any], new: dict[str, Any]) -> Sequence[str]:
    """Compare two (nested) configs: a line `key: old -> new` for every key in which they differ, sorted by key."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += [f"{key}.{line}" for line in differences(before, after)]
        elif before != after:
            lines.append(f"{key}: {before} -> {after}")
    return lines
