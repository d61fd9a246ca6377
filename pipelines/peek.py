"""A look at some images before there is a dataset: which resolution and how many channels suit them."""

import io
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from glo_core.decode import FORMATS, RejectedImageError
from pipelines.containers import is_container, list_members, read_members
from pipelines.sources import Source, list_files, no_file, place_of, read_file

_LOOKS = 256
"""Images of a source that are looked at"""
_NEARLY = 1.15
"""An image of 28 px may become one of 32 px"""
_LARGEST = 128
"""Resolution that is chosen at most; more is for whoever asks for it"""
_GREY = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"})


class Suited(NamedTuple):
    resolution: int
    """The largest power of two up to 1.15 times the median of the shorter sides, from 8 to 128"""
    channels: int
    """1 where every image is stored in grey, else 3"""


def suited(sources: Sequence[Source], tight_crop: int = 0) -> Suited:
    """What suits some of the images of `sources`, of which `tight_crop` pixels are kept if it is not 0.

    Raises:
        UserError: if a source holds no file.
    """
    sides, grey = [], True
    for source in sources:
        for data in _some(source):
            try:
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    sides.append(min(*image.size, tight_crop or min(image.size)))
                    grey &= image.mode in _GREY
            except Exception:  # Whatever is no image; why is told when it is decoded.
                continue
    if not sides:  # Decoding will say why each is none.
        return Suited(_LARGEST, 3)
    side = _NEARLY * statistics.median(sides)
    return Suited(max(size for size in (8, 16, 32, 64, _LARGEST) if size <= max(side, 8)), 1 if grey else 3)


def _some(source: Source) -> Iterator[bytes]:
    """The bytes of some images of `source`, spread over the files that are listed first."""
    files = next(iter(list_files(source)), None)
    if files is None or not files.paths:
        raise no_file(source)
    paths = sorted(files.paths)
    for path in paths[:: -(-len(paths) // _LOOKS) or 1]:
        try:
            if is_container(path):
                place = place_of(source.base, path)
                members = list_members(place)
                found = read_members(place, members.starts[:_LOOKS], members.lengths[:_LOOKS])
                yield from (data for _, data in found if isinstance(data, bytes))
            else:
                yield read_file(source.base, path)
        except (RejectedImageError, ValueError):
            continue
