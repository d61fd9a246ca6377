"""The chain of snapshots: one small file for each committed preprocessing run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import DIGEST_BYTES, canonical_json, floats_as_text, new_hasher
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
        hashes: uint8 `[n, 16]`, BLAKE3-128 of each image's file, in the order of `ids`.
        removed: ids that this snapshot removes, int64.
    """
    state = new_hasher()
    state.update(canonical_json({"parent": parent, "config": floats_as_text(dict(config))}))
    state.update(np.ascontiguousarray(ids, "<i8").tobytes() + np.ascontiguousarray(hashes).tobytes())
    state.update(np.ascontiguousarray(removed, "<i8").tobytes())
    return str(state.hexdigest(length=DIGEST_BYTES))


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
