"""Files that hold many images: tar shards in WebDataset's layout, Parquet tables with a column of encoded images.

They are foreign data: whatever reading one raises is a rejection of it, or of its members behind the damage.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.members import Content, Members
from pipelines.preprocess.table_members import list_table, read_rows
from pipelines.preprocess.tar_members import list_tar, read_tar_member

TAR, PARQUET = b".tar", b".parquet"
CONTAINER_ENDINGS = (TAR, PARQUET, TAR.upper(), PARQUET.upper())
REQUESTS = 16
"""Requests to an object store that one task has under way"""


def is_container(path: bytes) -> bool:
    """Whether a file of this name holds many images."""
    return path.endswith(CONTAINER_ENDINGS)


def list_members(place: Location) -> Members:
    """The images that a container holds, without reading one.

    Raises:
        RejectedImageError: if it cannot be read or holds no image, and nothing else.
    """
    with _rejections(place):
        with _open(place) as file:
            members = list_tar(file) if _is_tar(place) else list_table(file)
        if not members.names and not members.damage:
            raise RejectedImageError("no image inside")
        return members


def read_members(place: Location, starts: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, Content]]:
    """The bytes of members, in the order in which they lie: (index into `starts`, what reading gave).

    Args:
        starts, lengths: of each member, as `Members` has them.

    Raises:
        RejectedImageError: if the container cannot be read, at the first member concerned, and nothing else.
    """
    order = sorted(range(len(starts)), key=starts.__getitem__)
    with contextlib.ExitStack() as closing:
        with _rejections(place):
            file = closing.enter_context(_open(place))
        if _is_tar(place):
            read = functools.partial(_read_member, place, file, starts, lengths)
            yield from zip(order, read_ahead(read, order) if place.remote else map(read, order), strict=True)
            return
        contents = read_rows(file, starts, order)
        while True:
            with _rejections(place):  # Around reading alone: what the caller raises is not the file's.
                content = next(contents, None)
            if content is None:
                return
            yield content


def _read_member(place: Location, file: Any, starts: Sequence[int], lengths: Sequence[int], index: int) -> Content:
    try:
        with _rejections(place):
            return read_tar_member(file, starts[index], lengths[index])
    except RejectedImageError as error:
        return error


def _is_tar(place: Location) -> bool:
    return place.name.lower().endswith(os.fsdecode(TAR))


def _open(place: Location) -> Any:
    """A seekable `pyarrow.NativeFile`, not mapped: a mapped file that shrinks while it is read ends the process."""
    if place.path is None:
        return place.open()
    status = place.path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RejectedImageError("irregular")
    if not status.st_size:
        raise RejectedImageError("empty")
    return pa.OSFile(bytes(place.path))


@contextlib.contextmanager
def _rejections(place: Location) -> Iterator[None]:
    """The border to foreign data: make a rejection of any exception of the block."""
    try:
        yield
    except RejectedImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise RejectedImageError("missing") from None
    except MemoryError:
        raise RejectedImageError("broken container", "asks for more memory than there is") from None
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        # pyarrow says of damaged bytes too that they are an OSError, but one without a number of the system.
        if isinstance(error, OSError) and (place.remote or error.errno is not None):
            raise RejectedImageError("unreadable", error.strerror or detail) from None
        raise RejectedImageError("broken container", detail) from None


Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`read` of every item, in order, with `REQUESTS` of them under way and their results a few ahead."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        for first in range(0, len(items), 4 * REQUESTS):
            yield from pool.map(read, items[first : first + 4 * REQUESTS])
