"""The lines of a list of images: which places a list, which may come from somebody else, can name."""

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
        ConfigError: naming the line, if it names another store, holds a key or password, or, in a list that lies
            in a store, names a file of this machine.
    """
    lines = (line.rstrip(b"\r") for line in source.input.read_bytes().split(b"\n"))
    for number, line in enumerate(lines, 1):
        if b"://" in line:
            _require_allowed(source, number, line)
        if line.strip():
            yield line


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
