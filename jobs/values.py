"""Text of a command line or a recipe, read by the type of its field."""

import math
import os
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from glo_core.common.config import MustExist, NoneWord
from glo_core.common.errors import ConfigError
from glo_core.common.location import Location, is_uri
from glo_core.common.records import parse_field

BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WORDS = {
    int: "a whole number, such as 16",
    float: "a number, such as 0.1",
    bool: "true or false",
    Path: "a path",
    Location: "a path or a URI",
}
"""What a value of each type must be"""


def unwrap(hint: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """Of a field's type: the type of one value, whether it repeats, and our markers."""
    markers = getattr(hint, "__metadata__", ())
    hint = get_args(hint)[0] if markers else hint
    if get_origin(hint) in (Union, UnionType):  # T | None; of int | str, the one for any text
        hint = [member for member in get_args(hint) if member is not NoneType][-1]
    repeated = get_origin(hint) is tuple
    return (get_args(hint)[0] if repeated else hint), repeated, markers


def read_saved(hint: Any, value: Any, name: str) -> Any:
    """The value of a field of type `hint`, from what an earlier run saved of it in JSON.

    A path need not be there any more: the run keeps copies of what it needs.
    """
    kind, _, _ = unwrap(hint)
    if kind in (Path, Location) and isinstance(value, str):
        return kind(value)
    try:
        return parse_field(value, hint, name)
    except ValueError as error:
        raise ConfigError(
            f"an earlier run saved {error}; its run.json or dataset.json is damaged, copy it back"
        ) from None


def read_value(hint: Any, value: str | list[str], name: str) -> Any:
    """The value of a field of type `hint`, from its text."""
    kind, repeated, markers = unwrap(hint)
    none = [marker.word for marker in markers if isinstance(marker, NoneWord)]
    items = value if isinstance(value, list) else [value]
    if none and items == none:
        return None
    if kind is bool and not items:
        return True
    if not items or (len(items) > 1 and not repeated):
        raise ConfigError(f"{name} takes {'values' if repeated else 'one value'}, not {len(items)}")
    results = []
    for item in items:
        try:
            results.append(_read_text(kind, item))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        except (ValueError, ArithmeticError, LookupError, RuntimeError):
            choices = get_args(kind) or (WORDS[kind],)
            raise ConfigError(f"{name} {item}: must be {', or '.join([*choices, *none])}") from None
        path = _local(results[-1])
        if path is not None and not path.is_absolute():
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
                reason = "a submitted job runs in a copy of the working directory"
                raise ConfigError(f"{name} {item}: {reason}; give an absolute path")
            results[-1] = results[-1].absolute()
    return tuple(results) if repeated else results[0]


def require_path(hint: Any, value: Any, name: str) -> None:
    """Raise `ConfigError` if a field of type `hint` has to name what exists, and `value`, or one of it, does not."""
    _, repeated, markers = unwrap(hint)
    items = (value if repeated else [value]) if MustExist in markers else []
    for item in items:
        path = _local(item)
        if path is not None and not path.exists():
            raise ConfigError(f"{name} {path}: no such file or folder")


def _local(value: Any) -> Path | None:
    """The path of a `Path` or of a `Location` on a disk."""
    path = getattr(value, "path", value)
    return path if isinstance(path, Path) else None


def _read_text(kind: Any, text: str) -> Any:
    """The value of type `kind` that `text` writes.

    Raises:
        ValueError, ArithmeticError, LookupError, RuntimeError: if it writes none.
    """
    if kind is bool:
        return BOOLS[text.lower()]
    if kind is int:  # 1e6 is a million.
        number = Decimal(text)
        if number != number.to_integral_value() or number.adjusted() > 18:
            raise ValueError(text)
        return int(number)
    if get_origin(kind) is Literal:
        return get_args(kind)[get_args(kind).index(text)]
    if kind is Path and is_uri(text):
        path = Location(text).path  # A URI with a password is refused without repeating it.
        if path is None:
            raise ConfigError(f"{text}: is a URI, where a local path is needed")
        return path
    if kind in (Path, Location) and not is_uri(text):
        if not text:
            raise ValueError(text)
        text = str(Path(text).expanduser())
    if kind is float and not math.isfinite(float(text)):
        raise ValueError(text)
    return kind(text)
