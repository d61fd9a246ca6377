"""The lines of `progress.jsonl`: what each kind holds."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

Line = dict[str, Any]
"""`time_ms` since 1970, and one of: metrics with their `images_seen`; `picture` or `artifact`, a path in the directory;
`params`; `tags`; `inputs`; `dataset`; `status`, with which the MLflow run ends"""
FILE_KINDS = ("picture", "artifact")
KINDS = (*FILE_KINDS, "params", "tags", "inputs", "dataset", "status")
"""Keys that say what a line holds; a line with none of them holds metrics"""
log = logging.getLogger("glo.progress")


class Entry(NamedTuple):
    """A line of a log."""

    offset: int
    """Its first byte in the file"""
    line: Line


def kind_of(line: Line) -> str | None:
    """What `line` holds, one of `KINDS`; None of metrics."""
    return next((kind for kind in KINDS if kind in line), None)


def metrics_of(line: Line) -> tuple[int, int, dict[str, float]]:
    """A line of metrics as `Tracker.history` takes it."""
    values = {key: value for key, value in line.items() if key not in ("time_ms", "images_seen")}
    return line["time_ms"], line["images_seen"], values


def parse_line(data: bytes, path: Path, offset: int) -> Line | None:
    """The line in `data`, byte `offset` of `path`; None, with a warning, if it is not one of a progress log."""
    try:
        line: Line = json.loads(data)
        valid = isinstance(line, dict) and _is_valid(line)
    except (ValueError, RecursionError, KeyError):
        valid = False
    if not valid:
        log.warning("%s: the line at byte %d is not one of a progress log; it is skipped", path, offset)
        return None
    return line


def _is_valid(line: Line) -> bool:
    kind = kind_of(line)
    if kind is None:
        time_ms, images_seen, values = metrics_of(line)
        whole = all(type(number) is int and 0 <= number < 1 << 63 for number in (time_ms, images_seen))
        return whole and all(isinstance(value, int | float) for value in values.values())
    if not isinstance(line.get("images_seen", 0), int):
        return False
    return isinstance(line[kind], str if kind in (*FILE_KINDS, "status") else dict)
