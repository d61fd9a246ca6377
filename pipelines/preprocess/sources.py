"""Where images come from: folders, tar shards, Parquet tables and lists of paths, on a disk or in an object store.

A *source* is one input under a name that does not say where it lies. It is a base folder and the *files* in it, each
with a path, a size and a time; a file may be a *container*, whose *members* are the images.
"""

import functools
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from glo_core.common.errors import ConfigError
from glo_core.common.location import Location, is_uri
from pipelines.preprocess.containers import is_container

LISTS = (b".txt", b".lst")
"""Endings of text files that hold a path or URI on each line."""


class Source(NamedTuple):
    """One input under a name that does not say where it lies."""

    name: str
    base: Location
    """Folder that the paths of its files begin at"""
    kind: str
    """"folder", "container" or "list" """
    input: Location
    """The folder, container or list itself"""
    stores: frozenset[str] = frozenset()
    """Stores that a line of a list may name, as `Location.store` has them"""


def find_sources(
    inputs: Sequence[Location],
    bases: dict[str, str],
    list_stores: Sequence[Location] = (),
    holds_files_of: Callable[[str, Location], bool] = lambda name, base: False,
) -> list[Source]:
    """Name every input.

    A folder that moved keeps its name: its old place is gone, and the new one ends alike and holds the same files.

    Args:
        bases: base folder of each source of earlier plans, by its name.
        list_stores: stores that lines of a list may name beside those of `inputs`.
        holds_files_of: whether a base folder holds the files of the source of a name.

    Raises:
        UserError: if an input is missing or is of no kind that is read.
    """
    bases, sources = dict(bases), []
    stores = frozenset(place.store for place in (*inputs, *list_stores) if place.store is not None)
    for place in dict.fromkeys(_resolved(place) for place in inputs):
        kind = _kind(place)
        base = place if kind == "folder" else place.parent
        name = _name(place, base, bases, holds_files_of)
        bases[name] = str(base)
        sources.append(Source(name, base, kind, place, stores))
    return sources


def _resolved(place: Location) -> Location:
    # `Path.resolve` raises a RuntimeError at a link that leads to itself.
    return Location(os.path.realpath(place.path)) if place.path else place


def _name(
    place: Location, base: Location, bases: dict[str, str], holds_files_of: Callable[[str, Location], bool]
) -> str:
    """The name that this base has, or else one whose base is gone and whose files are here, or else a new one."""
    try:
        # In an ASCII locale Python reads names as such, and keeps the other letters as lone surrogates.
        last = os.fsencode(place.name).decode() if place.path else place.name
    except UnicodeDecodeError:
        last = "\0"
    if not last.isprintable():
        raise ConfigError(
            f"`input` (={str(place)!r}): its last part is not valid text; give a link of another name to it"
        )
    numbered = (last if number == 1 else f"{last}-{number}" for number in itertools.count(1))
    used = list(itertools.takewhile(lambda name: name in bases, numbered))
    exact = [name for name in used if bases[name] == str(base)]
    if exact:
        return exact[0]
    moved = (name for name in used if _is_gone(bases[name]) and holds_files_of(name, base))
    return next(moved, last if not used else f"{last}-{len(used) + 1}")


def _is_gone(base: str) -> bool:
    try:
        return not Location(base).exists()
    except OSError:  # A store that is no more
        return True


def _kind(place: Location) -> str:
    if place.is_dir():
        return "folder"
    if not place.exists():
        raise ConfigError(
            f"`input` (={place}): missing, where a folder of image files was expected on {socket.gethostname()}"
        )
    name = os.fsencode(place.name)
    if is_container(name):
        return "container"
    if name.lower().endswith(LISTS):
        return "list"
    raise ConfigError(
        f"`input` (={place}): a file, where a folder of images, a .tar or .parquet file, or a .txt or .lst list was "
        "expected"
    )


# ---------------------------------------------------------------- files of a source


@functools.lru_cache(maxsize=1024)
def _folder(base: Location) -> bytes | None:
    """The local folder that paths begin at, with its slash; None of a remote one."""
    return os.path.join(os.fsencode(base.path), b"") if base.path else None


def locate(base: Location, path: bytes) -> bytes | Location:
    """The file at `path` of a source: bytes for a local one, as the file system names it."""
    if is_uri(os.fsdecode(path)):  # A line of a list
        place = Location(os.fsdecode(path))
        return os.fsencode(place.path) if place.path else place
    folder = _folder(base)
    if folder is None:
        return base / os.fsdecode(path)
    return path if path.startswith(b"/") else folder + path


def place_of(base: Location, path: bytes) -> Location:
    """The file at `path` of a source, as a `Location`."""
    place = locate(base, path)
    return place if isinstance(place, Location) else Location(os.fsdecode(place))
