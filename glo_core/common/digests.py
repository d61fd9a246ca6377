"""Digests: BLAKE3 of bytes, or of canonical JSON, so that another language computes the same ones."""

import functools
import json
import numbers
from pathlib import Path
from typing import Any

from glo_core.common.errors import UserError
from glo_core.common.location import Location

DIGEST_BYTES = 16


def new_hasher() -> Any:
    """A `blake3.blake3`; its `digest(length=16)` is what every format holds.

    Raises:
        UserError: if the package blake3 is not installed.
    """
    return _blake3()()


@functools.cache
def _blake3() -> Any:
    try:
        from blake3 import blake3  # Only what reads or writes files needs it.
    except ImportError:
        raise UserError("the package blake3, which checks files, is not installed; pip install blake3") from None
    return blake3


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE3-128 of `data`."""
    return bytes(_blake3()(data).digest(length=DIGEST_BYTES))


def digest_json(value: Any) -> str:
    """BLAKE3-128 of the canonical JSON of `value`, in hex."""
    return digest(canonical_json(value)).hex()


def digest_file(place: Path | Location) -> str:
    """BLAKE3-128 of the bytes of a file, in hex."""
    path = Location(place).path
    if path is None:
        return digest(Location(place).read_bytes()).hex()
    hasher = new_hasher()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return str(hasher.hexdigest(length=DIGEST_BYTES))


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces and ASCII alone, of the types whose text no language disputes.

    NumPy integers are written as the integers that they are.

    Raises:
        TypeError: if `value` holds anything but str, int, bool, None, and lists, tuples and dicts of these.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":")).encode()


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's too
        return int(value)
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _canonical(item) for key, item in value.items()}
    raise TypeError(
        f"{value!r}: canonical JSON holds str, int, bool, None, lists and objects, not {type(value).__name__}"
    )


def floats_as_text(value: Any) -> Any:
    """`value` (nested lists and dicts) with every float as the text of its shortest decimal form."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return [floats_as_text(item) for item in value]
    return {key: floats_as_text(item) for key, item in value.items()} if isinstance(value, dict) else value
