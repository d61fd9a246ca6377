"""Which files are kept out of training: by their own hash, or by that of their group."""

import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from glo_core.common.arrays import BoolArray
from glo_core.common.digests import digest
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.hash_index import halves


def choose_held_out(new_files: Any, low: npt.NDArray[np.uint64], config: ResolvedDatasetConfig) -> BoolArray:
    """Which files are kept out of training, bool `[n]`: one by one, or by group.

    Args:
        new_files: of the schema `NEW_FILES`, n rows.
        low: low half of the hash that orders each file, uint64 `[n]`.
    """
    if config.group_by is not None:
        low, row = low.copy(), 0
        for batch in new_files.select(["path", "member"]).to_batches(max_chunksize=8192):
            for path, member in zip(batch.column("path").to_pylist(), batch.column("member").to_pylist(), strict=True):
                group = _group(config.group_by, path, member)
                if group:
                    low[row] = halves(digest(f"{config.seed}\0group\0".encode() + group))[0, 1]
                row += 1
    # The low half of the 128 bits, as a fraction of 2^64, is independent of the high half, which decides the order,
    # and of later folders.
    held_out: BoolArray = low / 2.0**64 < config.holdout
    return held_out


def _group(pattern: str, path: bytes, member: bytes | None) -> bytes:
    """What the first group of `pattern` matches in path, or path!member; b"" where it matches nothing."""
    match = re.search(pattern, os.fsdecode(path if member is None else path + b"!" + member))
    return os.fsencode(match[1] or "") if match else b""
