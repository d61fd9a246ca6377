"""The lines of a list of images: which places a list, which may come from somebody else, can name."""

import codecs
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from glo_core.common.credentials import redact
from glo_core.common.errors import ConfigError
from glo_core.common.location import Location, is_uri
from pipelines.preprocess.sources import Source

_NAMED_BEFORE_HOST = re.compile(r"^((?:abfss?|az|azure|hdfs|viewfs|gs|gcs)://)[^/:@%]+@", re.IGNORECASE)
"""Where the container of Azure, the user of HDFS and `anonymous` of Google stand, which are no secrets"""


def lines_of_list(source: Source) -> Iterator[bytes]:
    """The lines of a list that are not blank: URIs without white space before them, paths as they stand.

    A list on this machine may name files of this machine. A URI must be of a store that the command itself names.

    Raises:
        ConfigError: if the list is not in UTF-8, nor in another code that leaves ASCII as it is; naming the line, if
            it names another store or host, holds a key or password, or, in a list that lies in a store, names a
            file of this machine.
    """
    lines = (line.rstrip(b"\r") for line in _text(source.input).split(b"\n"))
    for number, line in enumerate(lines, 1):
        if b"://" in line:
            line = _without_indent(line)
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


def _without_indent(line: bytes) -> bytes:
    """`line` from its URI on, if only white space stands before it; the name of a file may begin with a space."""
    text = os.fsdecode(line).lstrip()
    return os.fsencode(text) if is_uri(text) else line


def _require_allowed(source: Source, number: int, line: bytes) -> None:
    label, text = f"`input` (={source.input}): line {number}", os.fsdecode(line)
    if _holds_secret(text):
        raise ConfigError(f"{label} holds a key or a password, which would be stored with the data; leave it out")
    try:
        place = Location(text)
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from None
    except ValueError:  # No URI, which is rejected like any file that cannot be read, and recorded.
        return
    if place.store is None and source.input.remote:
        raise ConfigError(f"{label} names a file of this machine, which a list in a store may not; leave it out")
    if place.store is not None and place.store not in source.stores:
        raise ConfigError(
            f"{label} names {place.store}, a store that this command does not; if you trust the list, add "
            f"`list_stores` '{place.store}'"
        )


def _holds_secret(line: str) -> bool:
    """Whether any URI in `line`, which need not begin with one, holds a user, a password or a token."""
    rest = _NAMED_BEFORE_HOST.sub(r"\1", line)
    return any(redact(text) != text for text in (rest, unquote(rest), unquote(unquote(rest))))
