"""JSON records: frozen dataclasses, read and written in one place.

A record's file holds its fields beside `format`, the kind of record, and `format_version`. A file that is
not whole, lacks a field or has one of another type is one line that names the file and the field.
"""

import dataclasses
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from glo_core.common.errors import UserError
from glo_core.common.files import write_bytes
from glo_core.common.location import Location

RecordT = TypeVar("RecordT", bound="Record")
T = TypeVar("T")


class Record:
    """Base of the records: frozen dataclasses of str, int, float, bool, None, tuples, dicts and dataclasses."""

    format: ClassVar[str]
    """The kind of record, as its file names it"""
    format_version: ClassVar[int] = 1
    error: ClassVar[type[UserError]] = UserError
    """What a damaged file raises"""
    anew: ClassVar[str] = "make it anew"
    """What to do with a file of a format from before the first release"""


def write_record(place: Path | Location, record: Record) -> None:
    """Write `record` as the file `place`, whole or not at all."""
    write_bytes(place, record_bytes(record))


def record_bytes(record: Record) -> bytes:
    """The file of `record`."""
    assert dataclasses.is_dataclass(record)
    head = {"format": record.format, "format_version": record.format_version}
    return (json.dumps(head | dataclasses.asdict(record), indent=2) + "\n").encode()


def read_record(place: Path | Location, kind: type[RecordT]) -> RecordT:
    """The record in the file `place`.

    Raises:
        UserError: `kind.error`, if the file is missing, not whole, or of another format or version.
    """
    try:
        data = Location(place).read_bytes()
    except FileNotFoundError:
        raise kind.error(f"{place}: no such file") from None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise kind.error(f"{place}: not valid JSON ({len(data)} bytes); the file may be cut short") from None
    if not isinstance(values, dict):
        raise kind.error(f"{place}: holds a {type(values).__name__}, not an object")
    return parse_record(values, kind, place)


def parse_record(values: dict[str, Any], kind: type[RecordT], place: Path | Location) -> RecordT:
    """The record that `values`, read from `place`, describe; errors as of `read_record`."""
    require_format(values, kind, place)
    try:
        record: RecordT = parse_field(values, kind, "")
    except ValueError as error:
        raise kind.error(f"{place}: {error}; the file is damaged, copy it back") from None
    return record


def require_format(values: dict[str, Any], kind: type[Record], place: Path | Location) -> None:
    """Raise `kind.error` if `values`, read from `place`, are not of the format and version that `kind` has."""
    if "format" not in values:
        raise kind.error(f"{place}: is of a format from before the first release; {kind.anew}")
    if values["format"] != kind.format:
        raise kind.error(f"{place}: format={values['format']!r}, where {kind.format!r} is needed")
    version = values.get("format_version")
    if type(version) is not int or version < 1:
        raise kind.error(f"{place}: format_version={version!r} must be a whole number, such as {kind.format_version}")
    if version > kind.format_version:
        raise kind.error(
            f"{place}: format_version={version} is newer than this program reads ({kind.format_version}); update it"
        )


def parse_value(values: Any, kind: type[T]) -> T:
    """The value of type `kind` that `values` describe, as JSON gave them.

    Raises:
        ValueError: naming the field, if it is of another type, or missing.
    """
    value: T = parse_field(values, kind, "")
    return value


def parse_field(value: Any, kind: Any, name: str) -> Any:
    """`value` as JSON gave it, as a value of type `kind`; `name` is its own in messages.

    Raises:
        ValueError: naming the field, if it is of another type, or missing.
    """
    if kind is Any or (value is None and kind in (None, NoneType)):
        return value
    origin, parts = get_origin(kind), get_args(kind)
    if hasattr(kind, "__metadata__"):
        return parse_field(value, parts[0], name)
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        return parse_field(value, next(part for part in parts if part is not NoneType), name)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _parse_dataclass(value, kind, name)
    if origin is Literal and value in parts:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(parse_field(item, parts[0], f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {
            _parse_key(key, parts[0], name): parse_field(item, parts[1], f"{name}.{key}") for key, item in value.items()
        }
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise ValueError(f"{name}={json.dumps(value)[:80]}: must be {_words(kind)}")


def _parse_dataclass(values: dict[str, Any], kind: Any, name: str) -> Any:
    hints, prefix = get_type_hints(kind, include_extras=True), f"{name}." if name else ""
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            fields[field.name] = parse_field(values[field.name], hints[field.name], prefix + field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"lacks the key {prefix + field.name!r}")
    return kind(**fields)


def _parse_key(key: str, kind: Any, name: str) -> Any:
    try:
        return kind(key)
    except ValueError:
        raise ValueError(f"{name} has the key {key!r}: must be {_words(kind)}") from None


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", or ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "an object"
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a list")
