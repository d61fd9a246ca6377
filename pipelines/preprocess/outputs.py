"""Folders that this project wrote, or MLflow for it: no file in them is an input."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from glo_core.common.errors import ConfigError
from glo_core.common.files import open_regular
from glo_core.common.location import Location, is_uri
from pipelines.preprocess.sources import Source

MARKS = {"dataset.json": "glo-dataset", "run.json": "glo-run"}
"""Name of the file by which a dataset, a run or a stage's folder is known, and the format that it names"""
_LARGEST_MARK = 16 << 20
"""Bytes of a mark at most; a file of that name that is larger is somebody else's"""
_ARTIFACTS = re.compile(r"(^|/)[0-9a-f]{32}/artifacts/?$")
"""Where MLflow keeps the pictures of a run, such as contact sheets and grids"""


def refuse_nesting(dataset: Location, sources: Sequence[Source]) -> None:
    """Refuse a dataset inside an input, and an input inside a dataset or a run.

    Raises:
        ConfigError: naming both places; the outputs would be read as input.
    """
    for source in sources:
        if contains(dataset, source.input):
            raise ConfigError(
                f"`input` (={source.input}): lies in `dataset` (={dataset}), whose files are outputs; give the folder "
                "of your images"
            )
        if source.kind == "folder" and contains(source.input, dataset):
            raise ConfigError(
                f"`dataset` (={dataset}): lies in `input` (={source.input}), so that its own files would become input; "
                "give a place outside of it, or the folders of images in it one by one"
            )
        owner = _owner(source.input)
        if owner is not None:
            raise ConfigError(
                f"`input` (={source.input}): {owner} holds outputs of this project; give the folder of your images"
            )


def contains(outer: Location, inner: Location) -> bool:
    """Whether `inner` is `outer` or lies in it, through links and mounts too."""
    if outer.path is not None and inner.path is not None:
        real = Path(os.path.realpath(inner.path))
        return any(_same_folder(outer.path, place) for place in (real, *real.parents))
    if outer.path is not None or inner.path is not None or _bucket(outer) != _bucket(inner):
        return False
    parts = _parts(outer)
    return _parts(inner)[: len(parts)] == parts


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # One of them is not there yet.
        return os.path.realpath(one) == str(other)


def _bucket(place: Location) -> str:
    return (place.store or "").partition("?")[0]


def _parts(place: Location) -> list[str]:
    """The folders of a key and its last part; empty parts, as in a//b, do not count."""
    assert place.store is not None
    bucket, text = _bucket(place), str(place)
    if "?" in place.store:
        text = text.removesuffix("?" + place.store.partition("?")[2])
    return [part for part in text.removeprefix(bucket).split("/") if part]


# ---------------------------------------------------------------- marks


def is_output(folder: str | bytes) -> bool:
    """Whether a local folder carries a mark, or holds MLflow's artifacts.

    Args:
        folder: its real path, without links.
    """
    path = os.fsdecode(folder)
    return bool(_ARTIFACTS.search(path)) or _is_marked(path)


class Owners:
    """The folders of outputs that local folders lie in; each folder is looked at once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._owners: dict[str, str | None] = {}

    def of_folder(self, real: str) -> str | None:
        """The folder of outputs that is `real`, a path without links, or the nearest one above it."""
        if real not in self._owners:
            above = str(Path(real).parent)
            self._owners[real] = real if is_output(real) else self.of_folder(above) if above != real else None
        return self._owners[real]

    def of_file(self, path: str | bytes) -> str | None:
        """The folder of outputs that a file lies in, after the links in its path."""
        return self.of_folder(str(Path(os.path.realpath(os.fsdecode(path))).parent))


def is_remote_output(fs: Any, folder: str, names: Sequence[str]) -> bool:
    """The same of a folder in a store, whose files have `names`.

    Args:
        fs: a `pyarrow.fs.FileSystem`.
    """
    if _ARTIFACTS.search(folder):
        return True
    for name in MARKS.keys() & set(names):
        with fs.open_input_stream(f"{folder}/{name}") as file:
            if _names_format(file.read(_LARGEST_MARK), MARKS[name]):
                return True
    return False


def _is_marked(folder: str) -> bool:
    for name, kind in MARKS.items():
        try:
            descriptor = open_regular(str(Path(folder, name)))
            if descriptor is None:
                continue
            with os.fdopen(descriptor, "rb") as file:
                if _names_format(file.read(_LARGEST_MARK), kind):
                    return True
        except OSError:  # Nearly always: no such file
            continue
    return False


def _names_format(data: bytes, kind: str) -> bool:
    """Whether `data` is the record: people have files named dataset.json too, such as labels beside images."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("format") == kind


def _owner(place: Location) -> str | None:
    """The folder of outputs that is `place` or the nearest one above it."""
    if place.path is not None:
        return Owners().of_folder(os.path.realpath(place.path))
    folder = place
    while True:
        fs, path = folder.file_system()
        infos = fs.get_file_info([f"{path}/{name}" for name in MARKS])
        names = [info.base_name for info in infos if info.type == pafs.FileType.File]
        if is_remote_output(fs, path, names):
            return str(folder)
        if not folder.name:  # The bucket itself
            return None
        folder = folder.parent


def require_no_output(dataset: Location, source: Source, lines: Sequence[bytes]) -> None:
    """Refuse lines of a list that name an output: of this dataset, or of any other place on this machine.

    Raises:
        ConfigError: naming the first.
    """
    owners = Owners()
    for line, place in _places(source, lines):
        if contains(dataset, place) if place.path is None else owners.of_file(bytes(place.path)) is not None:
            raise ConfigError(
                f"`input` (={source.input}): the line {os.fsdecode(line)!r} names an output of this project; leave it "
                "out"
            )


def _places(source: Source, lines: Sequence[bytes]) -> Iterator[tuple[bytes, Location]]:
    for line in lines:
        text = os.fsdecode(line)
        try:
            yield line, Location(text) if is_uri(text) else source.base / text
        except ValueError:  # No URI: it is rejected.
            continue
