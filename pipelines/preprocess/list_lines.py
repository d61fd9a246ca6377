"""The lines of a list of images: which places a list, which may come from somebody else, can name."""

import codecs
import os
from collections.abc import Iterator

from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError
from glo_core.common.location import Location
from pipelines.preprocess.sources import Source


def lines_of_list(source: Source) -> Iterator[bytes]:
    """The lines of a list that are not blank, as they stand.

    A list on this machine may name files of this machine. A URI must be of a store that the command itself names.

    Raises:
        ConfigError: if the list is not in UTF-8, nor in another code that leaves ASCII as it is; naming the line, if
            it names another store or host, holds a key or password, or, in a list that lies in a store, names a
            file of this machine.
    """
    lines = (line.rstrip(b"\r") for line in _text(source.input).split(b"\n"))
    for number, line in enumerate(lines, 1):
        if b"://" in line:
            _require_allowed(source, number, line)
        if line.strip():
            yield line


def _text(place: Location) -> bytes:
    """The list without the byte order mark that Windows puts before it."""
    text = place.read_bytes().removeprefix(codecs.BOM_UTF8)
    utf16 = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text[:4]
    if utf16 or b"\0" in text:
        what = "is in UTF-16" if utf16 else "holds a byte 0"
        raise ConfigError(f"`input` (={place}): {what}, where a list in UTF-8 was expected; save it as UTF-8")
    return text


def _require_allowed(source: Source, number: int, line: bytes) -> None:
    label = f"`input` (={source.input}): line {number}"
    try:
        place = Location(os.fsdecode(line))
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from None
    except ValueError:  # No URI, which is rejected like any file that cannot be read, and recorded.
        if redact(text := os.fsdecode(line)) != text:
            raise ConfigError(f"{label} is no URI, and holds a password; leave it out") from None
        return
    if place.store is None and source.input.remote:
        raise ConfigError(f"{label} names a file of this machine, which a list in a store may not; leave it out")
    if place.store is not None and place.store not in source.stores:
        raise ConfigError(
            f"{label} names {place.store}, a store that this command does not; if you trust the list, add "
            f"`list_stores` '{place.store}'"
        )
