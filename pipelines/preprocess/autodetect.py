"""A look at some images before there is a dataset: which resolution and how many channels suit them."""

import contextlib
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from glo_core.common.digests import DIGEST_BYTES, digest
from glo_core.dataset_format.config import DatasetConfig
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import is_container, read_ahead
from pipelines.preprocess.reader_process import Look, ReaderProcess
from pipelines.preprocess.reading import foreign_data, read_file
from pipelines.preprocess.sources import Source, place_of
from pipelines.preprocess.walk import list_files, no_file

SAMPLE_SIZE = 256
"""Images of a source that are looked at, if it has as many"""
MEMBERS_AT_ONCE = 64
"""Images of a container that are looked at before another container is opened"""
FILES_AT_ONCE = 64
"""Files that are read before it is asked whether there were images enough"""
PATHS_AT_ONCE = 1 << 14
"""Paths that are chosen by one listing of a source; the next one, if images are rare, chooses 4 times as many"""
ENLARGEMENT = 1.15
"""How much larger than the median image the result may be: an image of 28 px may become one of 32 px"""
MAX_RESOLUTION = 128
"""Largest resolution that is suggested; a larger one is set by hand"""
GRAY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"})


class SuggestedFormat(NamedTuple):
    """What suits some images."""

    resolution: int
    """The largest power of two up to 1.15 times the median of the shorter sides, from 8 to 128"""
    channels: int
    """1 where every image looked at is stored in gray, else 3"""


def suggest_format(
    sources: Sequence[Source], tight_crop: int | None = None, max_bytes: int = DatasetConfig.max_bytes
) -> SuggestedFormat:
    """What suits a sample of the images of `sources`, of which a crop of `tight_crop` px is kept, if any.

    Args:
        max_bytes: of the dataset; larger files are not looked at.

    Raises:
        UserError: if a source holds no file.
    """
    with ReaderProcess() as reader:
        looks = [
            look
            for source in sources
            for look in itertools.islice(_look_at_images(source, max_bytes, reader), SAMPLE_SIZE)
        ]
    if not looks:
        return SuggestedFormat(MAX_RESOLUTION, 3)
    sides = [min(width, height, tight_crop or width) for width, height, _ in looks]
    side = max(ENLARGEMENT * statistics.median(sides), 8)
    resolution = max(size for size in (8, 16, 32, 64, MAX_RESOLUTION) if size <= side)
    return SuggestedFormat(resolution, 1 if all(mode in GRAY_MODES for _, _, mode in looks) else 3)


def _look_at_images(source: Source, max_bytes: int, reader: ReaderProcess) -> Iterator[Look]:
    """Looks at images of `source`: the same ones whatever the order in which its files are listed."""

    def read(path: bytes) -> bytes | None:
        try:
            return read_file(source.base, path, max_bytes)
        except RejectedImageError:
            return None

    paths, containers = _paths_by_hash(source), list[bytes]()
    while chunk := list(itertools.islice(paths, FILES_AT_ONCE)):
        for path in filter(is_container, chunk):
            containers.append(path)
            yield from _members(source, path, max_bytes, reader, others=False)
        files = list(itertools.filterfalse(is_container, chunk))
        for data in filter(None, read_ahead(read, files) if source.base.remote else map(read, files)):
            with contextlib.suppress(RejectedImageError):  # No image: decoding will say why.
                yield reader.look(data)
    for path in containers:
        yield from _members(source, path, max_bytes, reader, others=True)


def _members(source: Source, path: bytes, max_bytes: int, reader: ReaderProcess, *, others: bool) -> Iterator[Look]:
    """Looks at `MEMBERS_AT_ONCE` members of a container, evenly spread, or at all `others`."""
    with contextlib.suppress(RejectedImageError), foreign_data("broken container"):
        place = place_of(source.base, path)
        members = reader.list_members(place)
        step = -(-len(members.names) // MEMBERS_AT_ONCE)
        rows = [
            row for row, length in enumerate(members.lengths) if (row % step != 0) == others and length <= max_bytes
        ]
        for first in range(0, len(rows), MEMBERS_AT_ONCE):
            chunk = rows[first : first + MEMBERS_AT_ONCE]
            starts, lengths = [members.starts[row] for row in chunk], [members.lengths[row] for row in chunk]
            yield from reader.look_at_members(place, starts, lengths)


def _paths_by_hash(source: Source) -> Iterator[bytes]:
    """Every path of `source` in the order of its hash. The source is listed again for those that did not fit.

    Raises:
        UserError: if there is none.
    """
    limit, last = PATHS_AT_ONCE, b""
    while chosen := _lowest(source, limit, last):
        yield from (path for _, path in chosen)
        if len(chosen) < limit:
            return
        limit, last = 4 * limit, chosen[-1][0]
    if not last:
        raise no_file(source)


def _lowest(source: Source, limit: int, above: bytes) -> list[tuple[bytes, bytes]]:
    """(hash, path) of the `limit` files of the lowest hashes beyond `above`, in order."""
    chosen, below = list[tuple[bytes, bytes]](), b"\xff" * (DIGEST_BYTES + 1)
    for files in list_files(source):
        keys = ((digest(path), path) for path in files.paths)
        chosen += [(key, path) for key, path in keys if above < key < below]
        if len(chosen) > 2 * limit:
            chosen = sorted(chosen)[:limit]
            below = chosen[-1][0]
    return sorted(chosen)[:limit]
