"""A look at some images before there is a dataset: which resolution and how many channels suit them."""

import contextlib
import heapq
import io
import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from glo_core.common.digests import digest
from glo_core.dataset_format.pixels.headers import FORMATS
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import is_container, list_members, read_members
from pipelines.preprocess.sources import Source, place_of, read_file
from pipelines.preprocess.walk import list_files, no_file

SAMPLE_SIZE = 256
"""Images of a source that are looked at"""
SAMPLE_CONTAINERS = 4
"""Containers of a source that are opened for them"""
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


def suggest_format(sources: Sequence[Source], tight_crop: int | None = None) -> SuggestedFormat:
    """What suits a sample of the images of `sources`, of which a crop of `tight_crop` px is kept, if any.

    Raises:
        UserError: if a source holds no file.
    """
    sides, gray = [], True
    for source in sources:
        for data in _sample(source):
            try:
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    sides.append(min(*image.size, tight_crop or min(image.size)))
                    gray &= image.mode in GRAY_MODES
            except Exception:  # No image: decoding will say why.
                continue
    if not sides:
        return SuggestedFormat(MAX_RESOLUTION, 3)
    side = max(ENLARGEMENT * statistics.median(sides), 8)
    resolution = max(size for size in (8, 16, 32, 64, MAX_RESOLUTION) if size <= side)
    return SuggestedFormat(resolution, 1 if gray else 3)


def _sample(source: Source) -> Iterator[bytes]:
    """The bytes of images of `source`: the same ones whatever the order in which its files are listed."""
    chosen: list[tuple[bytes, bytes]] = []
    for files in list_files(source):
        keys = ((digest(path), path) for path in files.paths)
        chosen = heapq.nsmallest(SAMPLE_SIZE, itertools.chain(chosen, keys))
    if not chosen:
        raise no_file(source)
    paths = [path for _, path in chosen]
    containers = [path for path in paths if is_container(path)][:SAMPLE_CONTAINERS]
    for path in containers:
        with contextlib.suppress(RejectedImageError):
            place = place_of(source.base, path)
            members = list_members(place)
            step = -(-len(members.names) * SAMPLE_CONTAINERS // SAMPLE_SIZE) or 1
            contents = read_members(place, members.starts[::step], members.lengths[::step])
            yield from (data for _, data in contents if isinstance(data, bytes))
    for path in paths:
        if not is_container(path):
            with contextlib.suppress(RejectedImageError, ValueError):  # A line of a list that is no URI
                yield read_file(source.base, path)
