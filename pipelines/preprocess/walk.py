"""The files of a source, each with its path, size and time; many at once where the file system is slow."""

import heapq
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from glo_core.common.errors import ConfigError, one_line
from glo_core.common.location import Location
from pipelines.preprocess.list_lines import lines_of_list
from pipelines.preprocess.outputs import Owners, is_output, is_remote_output
from pipelines.preprocess.sources import Source, locate

CHUNK = 8192
"""Files that are handed on together."""
WAITING = 32
"""Requests to a network that are under way at once."""
MAX_INT64 = (1 << 63) - 1
SLOW_STAT_S = 50e-6
"""Seconds for one file above which many are looked at at once; on a local disk threads only cost."""


class Files(NamedTuple):
    """Some files of a source, column by column."""

    paths: list[bytes]
    """Relative to the base; in a list, each line as it stands"""
    sizes: list[int]
    """Bytes; -1 of what could not be read, or is no regular file"""
    mtimes_ns: list[int]
    """Nanoseconds since 1970; 0 of what could not be read"""

    def add(self, path: bytes, size: int, mtime_ns: int) -> None:
        """Add one file. A time outside of int64, which ends in 2262, becomes the nearest one in it."""
        self.paths.append(path)
        self.sizes.append(size)
        self.mtimes_ns.append(min(max(mtime_ns, -MAX_INT64 - 1), MAX_INT64))


# ---------------------------------------------------------------- listing


def no_file(source: Source) -> ConfigError:
    """The error about a source that is empty."""
    return ConfigError(f"`input` (={source.input}): holds no file, where image files were expected")


def list_files(source: Source) -> Iterator[Files]:
    """Every file of a source, in chunks, in no order; names that begin with a dot are left out.

    Raises:
        ConfigError: if the input itself cannot be listed.
    """
    try:
        if source.kind == "container":
            yield from _stat_all(source, iter([os.fsencode(source.input.name)]))
        elif source.kind == "list":
            yield from _stat_all(source, lines_of_list(source))
        elif source.base.path is not None:
            yield from _walk(os.fsencode(source.base.path))
        else:
            yield from _walk_remote(source.base)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"`input` (={source.input}): {reason}") from None


def _walk(base: bytes) -> Iterator[Files]:
    """Every file below a local folder. Links are followed; a folder is entered once, and one of outputs never.

    Args:
        base: its real path, without links.
    """
    unread, owners = Files([], [], []), Owners()
    entries = _entries(base, unread, owners)
    with _Chunks() as chunks:
        while chunk := list(itertools.islice(entries, CHUNK)):
            yield from chunks.submit(_stat_entries, chunk, len(base) + 1, owners)
        yield from chunks.rest()
    yield unread


def _entries(base: bytes, unread: Files, owners: Owners) -> Iterator["os.DirEntry[bytes]"]:
    """Every entry below `base` that is no folder; folders that cannot be read are entered in `unread`."""
    # Each folder by the path that its files are listed under, and by its real path, which tells whose it is
    pending, linked, entered = [(base, base)], list[bytes](), set[tuple[int, int]]()
    while pending or linked:
        # Linked folders come last and in order, so that which path a file gets does not depend on the listing's order.
        is_link = not pending
        folder, real = (link := heapq.heappop(linked), os.path.realpath(link)) if is_link else pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:  # A link to a folder above it would never end.
                continue
            entered.add((status.st_dev, status.st_ino))
            if owners.of_folder(os.fsdecode(real)) if is_link else folder != base and is_output(real):
                continue
            for entry in _scan(folder):
                if _is_folder(entry):
                    pending.append((entry.path, os.path.join(real, entry.name)))
                elif entry.is_symlink() and _leads_to_folder(entry):
                    heapq.heappush(linked, entry.path)
                else:
                    yield entry
        except OSError:
            if folder == base:
                raise
            unread.add(folder[len(base) + 1 :], -1, 0)  # It is listed, so that it is rejected.


def _scan(folder: bytes) -> Iterator["os.DirEntry[bytes]"]:
    with os.scandir(folder) as listing:
        yield from (entry for entry in listing if not entry.name.startswith(b"."))


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # Where the listing does not tell, and the entry cannot be asked: a file that cannot be read
        return False


def _leads_to_folder(link: "os.DirEntry[bytes]") -> bool:
    try:
        return link.is_dir()
    except OSError:  # A loop, or a folder without permission: a file that cannot be read
        return False


def _stat_entries(entries: Sequence["os.DirEntry[bytes]"], start: int, owners: Owners) -> Files:
    """The files at `entries`, but for links to outputs; a path begins at byte `start`."""
    files = Files([], [], [])
    for entry in entries:
        try:
            if entry.is_symlink() and owners.of_file(entry.path) is not None:
                continue
            status = entry.stat()
        except OSError:  # A broken link, or one that leads to itself
            files.add(entry.path[start:], -1, 0)
            continue
        files.add(entry.path[start:], status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)
    return files


def _walk_remote(base: Location) -> Iterator[Files]:
    """Every object below a remote folder, many folders at once."""
    fs, root = base.file_system()
    with ThreadPoolExecutor(WAITING) as pool:
        pending = [(root, pool.submit(_list_remote, fs, root, root))]
        while pending:
            folder, future = pending.pop(0)
            try:
                files, folders = future.result()
            except (OSError, ValueError):
                if folder == root:
                    raise
                yield Files([os.fsencode(folder[len(root) + 1 :])], [-1], [0])  # It is listed, so that it is rejected.
                continue
            pending += [(below, pool.submit(_list_remote, fs, root, below)) for below in folders]
            for first in range(0, len(files), CHUNK):
                infos = files[first : first + CHUNK]
                chunk = Files([], [], [])
                for info in infos:
                    chunk.add(os.fsencode(info.path[len(root) + 1 :]), info.size, info.mtime_ns or 0)
                yield chunk


def _list_remote(fs: Any, root: str, folder: str) -> tuple[list[Any], list[str]]:
    """The `pyarrow.fs.FileInfo` of each object in one folder, and the paths of the folders in it."""
    infos = [info for info in fs.get_file_info(pafs.FileSelector(folder)) if not info.base_name.startswith(".")]
    files = [info for info in infos if info.type == pafs.FileType.File]
    if folder != root and is_remote_output(fs, folder, [info.base_name for info in files]):
        return [], []
    return files, [info.path for info in infos if info.type == pafs.FileType.Directory]


def _stat_all(source: Source, paths: Iterator[bytes]) -> Iterator[Files]:
    """The files at `paths` of a source."""
    with _Chunks() as chunks:
        while chunk := list(itertools.islice(paths, CHUNK)):
            yield from chunks.submit(_stat_paths, source.base, chunk)
        yield from chunks.rest()


def _stat_paths(base: Location, paths: Sequence[bytes]) -> Files:
    files = Files([], [], [])
    for path in paths:
        try:
            place = locate(base, path)
            if isinstance(place, bytes):
                status = os.stat(place)
                files.add(path, status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns)
            else:
                info = place.info()
                files.add(path, -1 if info.size is None else info.size, info.mtime_ns or 0)
        except Exception:  # Reading it will say why.
            files.add(path, -1, 0)
    return files


class _Chunks:
    """Calls that each look at one chunk of files: in turn where the file system is quick, else many at once."""

    def __enter__(self) -> "_Chunks":
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[Future[Files]] = []
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, stat_chunk: Callable[..., Files], *arguments: Any) -> Iterator[Files]:
        """Look at one more chunk; yields the chunks that are ready."""
        if self._pool is None:
            started = time.perf_counter()
            files = stat_chunk(*arguments)
            if (time.perf_counter() - started) / max(1, len(files.paths)) > SLOW_STAT_S:
                self._pool = ThreadPoolExecutor(WAITING)
            yield files
            return
        self._waiting.append(self._pool.submit(stat_chunk, *arguments))
        if len(self._waiting) >= 2 * WAITING:
            yield self._waiting.pop(0).result()

    def rest(self) -> Iterator[Files]:
        """The chunks that are still under way."""
        for future in self._waiting:
            yield future.result()
