"""Tars and Parquet tables of small images, and what reading them gives."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members, read_members
from pipelines.preprocess.members import Members


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def contents(place: Path) -> dict[str, bytes | str]:
    """By name, each member's bytes, or the reason of its rejection."""
    members = list_members(Location(place))
    read: dict[str, bytes | str] = {}
    for index, content in read_members(Location(place), members.starts, members.lengths):
        name = members.names[index].decode(errors="replace")
        read[name] = content if isinstance(content, bytes) else content.reason
    assert len(read) == len(members.names)
    return read


def members_of(place: Path) -> Members:
    return list_members(Location(place))


def rejected(place: Path) -> str:
    with pytest.raises(RejectedImageError) as caught:
        contents(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def member(name: str, data: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
