"""The chain of snapshots: one small file for each committed preprocessing run."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.errors import UserError
from glo_core.common.files import read_json
from glo_core.common.location import Location


def snapshot_digest(
    parent: str, config: Mapping[str, Any], ids: Int64Array, hashes: UInt8Array, removed: Int64Array
) -> str:
    """H(parent digest, config, content hashes, ids), in hex: the same wherever the files lie.

    Args:
        parent: digest of the snapshot before, or "" for the first.
        config: as `dataset.json` records it.
        ids: int64 `[n]`, ascending, of the snapshot's images that are no duplicates.
        hashes: uint8 `[n, 16]`, BLAKE2b-128 of each image's file, in the order of `ids`.
        removed: ids that this snapshot removes, int64.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((parent, sorted(config.items()))).encode())
    state.update(np.ascontiguousarray(ids, "<i8").tobytes() + np.ascontiguousarray(hashes).tobytes())
    state.update(np.ascontiguousarray(removed, "<i8").tobytes())
    return state.hexdigest()


def read_snapshots(path: Location) -> list[dict[str, Any]]:
    """The chain of snapshots, oldest first.

    Raises:
        UserError: if one is missing.
    """
    names = [name for name in (path / "snapshots").names() if name.endswith(".json") and not name.startswith(".")]
    snapshots = [read_json(path / "snapshots" / name) for name in names]
    for number, (before, after) in enumerate(zip([{"digest": ""}, *snapshots], snapshots, strict=False), start=1):
        if after["number"] != number or after["parent"] != before["digest"]:
            raise UserError(f"{path}: snapshot {number} is missing from snapshots/; copy it back")
    return snapshots
