"""What listing the sources found: counts, and names of files for people."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from glo_core.common.arrays import Int64Array
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import rows_of

NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class DiffStats:
    """What listing the sources found, in files; a container counts as one."""

    found: int = 0
    unchanged: int = 0
    """Files of earlier plans, with the same bytes"""
    changed: int = 0
    """Files of earlier plans, with other bytes: new images. Of containers, their members"""
    vanished: int = 0
    """Files of earlier plans that were not found: their images stay. Of containers, their members"""
    changed_names: tuple[str, ...] = ()
    """The first few"""
    vanished_names: tuple[str, ...] = ()

    def __add__(self, other: "DiffStats") -> "DiffStats":
        return DiffStats(
            found=self.found + other.found,
            unchanged=self.unchanged + other.unchanged,
            changed=self.changed + other.changed,
            vanished=self.vanished + other.vanished,
            changed_names=(self.changed_names + other.changed_names)[:NAMES_SHOWN],
            vanished_names=(self.vanished_names + other.vanished_names)[:NAMES_SHOWN],
        )

    def lines(self) -> list[str]:
        """What a person should know of files that are not as they were."""
        lines = []
        if self.changed:
            names = _enumerate(self.changed_names, self.changed)
            lines.append(f"changed {self.changed}: new images under new ids ({names})")
        if self.vanished:
            names = _enumerate(self.vanished_names, self.vanished)
            lines.append(f"vanished {self.vanished}: their images stay ({names})")
        return lines


def _enumerate(names: Sequence[str], count: int) -> str:
    """The first names of `count`."""
    return ", ".join(names) + (", ..." if count > len(names) else "")


def names_of_ids(dataset: Location, ids: Int64Array) -> tuple[str, ...]:
    """source/path of each of `ids` (int64 `[n]`) that is in the manifest, for people."""
    return tuple(
        display_name(row["source"], row["path"]) for row in rows_of(dataset, ids, ["source", "path"]).to_pylist()
    )


def display_name(source: str, path: bytes, member: bytes | None = None) -> str:
    """source/path or source/path!member for people: one line, whatever bytes it is made of."""
    whole = path if member is None else path + b"!" + member
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{source}/{os.fsdecode(whole)}")
