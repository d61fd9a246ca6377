"""Containers are listed, and images looked at, in a process beside the driver: a file that ends it costs nothing else.

A request is a line of JSON, the name of a function and its arguments, and bytes behind it. Answers are JSON too.
"""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from glo_core.common.digests import digest
from glo_core.common.location import Location
from glo_core.dataset_format.pixels.headers import format_of
from glo_core.dataset_format.pixels.tiff_tags import is_raw_camera_file
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members, read_members
from pipelines.preprocess.decoder_process import ChildProcess, serve
from pipelines.preprocess.members import Content, Members

READ_AT_ONCE, ANSWER_BYTES = 32, 32 << 20
"""Members that are asked for at once, and bytes after which an answer ends"""
Look = tuple[int, int, str]
"""Width, height and mode of an image"""


class ReaderProcess(ChildProcess):
    """Reads foreign files for the driver. Every method raises `RejectedImageError` of a file that ends the process."""

    def __init__(self) -> None:
        """Start nothing yet. There is no time limit: a listing takes as long as the container is large."""
        super().__init__("pipelines.preprocess.reader_process", b"", threading.TIMEOUT_MAX)

    def look(self, data: bytes) -> Look:
        """What the header of an image says."""
        return _as_look(self._ask_for("look", body=data))

    def list_members(self, place: Location) -> Members:
        """As `pipelines.preprocess.containers.list_members`."""
        names, starts, lengths, labels, damage = self._ask_for("list", place)
        return Members([os.fsencode(name) for name in names], starts, lengths, labels, damage)

    def look_at_members(self, place: Location, starts: Sequence[int], lengths: Sequence[int]) -> list[Look]:
        """What the headers of those members say that are images."""
        return [_as_look(look) for look in self._ask_for("look at members", place, starts, lengths)]

    def digests(self, place: Location, starts: Sequence[int], lengths: Sequence[int]) -> dict[int, bytes]:
        """The BLAKE3-128 of each member that can be read, by its index into `starts`."""
        answer = self._ask_for("digests", place, starts, lengths)
        return {index: bytes.fromhex(text) for index, text in answer}

    def read_members(
        self, place: Location, starts: Sequence[int], lengths: Sequence[int]
    ) -> Iterator[tuple[int, Content]]:
        """As `pipelines.preprocess.containers.read_members`, but of a member that ends the process a rejection."""
        pending, at_once = sorted(range(len(starts)), key=starts.__getitem__), READ_AT_ONCE
        while pending:
            chunk = pending[:at_once]
            places = [starts[index] for index in chunk], [lengths[index] for index in chunk]
            try:
                head, body = self.request(_packed("read", place, *places))
            except RejectedImageError as error:
                if len(chunk) > 1 and error.reason == "kills its decoder":
                    at_once = 1  # One of them did.
                    continue
                yield from ((index, error) for index in chunk)
                pending = pending[len(chunk) :]
                continue
            first = 0
            for number, result in head["results"]:
                content: Content = (
                    body[first : first + result] if isinstance(result, int) else RejectedImageError(*result)
                )
                first += result if isinstance(result, int) else 0
                yield chunk[number], content
            pending = pending[len(head["results"]) :]

    def _ask_for(self, name: str, *arguments: Any, body: bytes = b"") -> Any:
        return json.loads(self.request(_packed(name, *arguments, body=body))[1])


def _packed(name: str, *arguments: Any, body: bytes = b"") -> bytes:
    """A request: whole numbers alone stand in lists, and a place is its text, which is ASCII in JSON."""
    values = [str(value) if isinstance(value, Location) else [int(number) for number in value] for value in arguments]
    return json.dumps([name, values]).encode() + b"\n" + body


def _as_look(values: Any) -> Look:
    width, height, mode = values
    return int(width), int(height), str(mode)


# ---------------------------------------------------------------- the child


def _look(data: bytes) -> Look:
    kind = format_of(data)
    if kind is None or (kind == "TIFF" and is_raw_camera_file(data)):  # As in decoding
        raise RejectedImageError("unknown format")
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        return *image.size, image.mode


def _list(place: str) -> Any:
    names, *others = list_members(Location(place))
    return [[os.fsdecode(name) for name in names], *others]


def _look_at_members(place: str, starts: list[int], lengths: list[int]) -> list[Look]:
    looks = []
    for _, data in read_members(Location(place), starts, lengths):
        try:
            looks += [_look(data)] if isinstance(data, bytes) else []
        except Exception:  # No image: decoding will say why.
            continue
    return looks


def _digests(place: str, starts: list[int], lengths: list[int]) -> list[tuple[int, str]]:
    contents = read_members(Location(place), starts, lengths)
    return [(index, digest(data).hex()) for index, data in contents if not isinstance(data, RejectedImageError)]


def _read(place: str, starts: list[int], lengths: list[int]) -> tuple[dict[str, Any], bytes]:
    """The first of the members, which are in order, up to `ANSWER_BYTES`; at least one."""
    results, body = list[Any](), b""
    for index, content in read_members(Location(place), starts, lengths):
        results.append((index, len(content) if isinstance(content, bytes) else (content.reason, content.detail)))
        body += content if isinstance(content, bytes) else b""
        if len(body) > ANSWER_BYTES:
            break
    return {"results": results}, body


_SERVICES: dict[str, Callable[..., Any]] = {
    "list": _list,
    "look at members": _look_at_members,
    "digests": _digests,
}


def _begin(greeting: bytes) -> Callable[[bytes], tuple[dict[str, Any], bytes]]:
    def answer(data: bytes) -> tuple[dict[str, Any], bytes]:
        line, _, body = data.partition(b"\n")
        name, arguments = json.loads(line)
        if name == "look":
            return {}, json.dumps(_look(body)).encode()
        if name == "read":
            return _read(*arguments)
        return {}, json.dumps(_SERVICES[name](*arguments)).encode()

    return answer


if __name__ == "__main__":
    serve(_begin)
