"""The chain of snapshots: one small file for each committed preprocessing run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import DIGEST_BYTES, canonical_json, floats_as_text, new_hasher
from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.common.records import read_record
from glo_core.dataset_format.blocks import BlockEntry
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.records import DatasetFile, read_config, record_path


@dataclass(frozen=True, kw_only=True)
class SnapshotCounts:
    """By how many files and images a snapshot changes the dataset; what it removes counts below zero."""

    files: int
    """Files and members of containers that were new or changed"""
    train: int
    """Training images"""
    holdout: int
    """Held-out images"""
    duplicate: int
    rejected: int


@dataclass(frozen=True, kw_only=True)
class Snapshot(DatasetFile):
    """What `snapshots/N.json` holds: one committed preprocessing run, or one removal of images."""

    format = "glo-snapshot"
    number: int
    """N, from 1 on"""
    parent: str
    """Digest of snapshot N - 1, or "" """
    digest: str
    """See `snapshot_digest`"""
    counts: SnapshotCounts
    rejected: dict[str, int]
    """Number of rejected files by reason"""
    removed: tuple[int, ...]
    """Image ids, ascending, that every reader skips from here on, whatever older snapshot it reads"""
    duplicate_of: dict[int, int]
    """By removed id, the lower id in another block of the same plan that has its bytes"""
    replaced: dict[int, int]
    """By removed id, the new id of the same file"""
    blocks: tuple[BlockEntry, ...]
    sources: dict[str, str]
    """Base folder of each source of the dataset so far; not part of the digest, nor are the fields below"""
    mlflow_run_id: str | None
    """The run that made it; None of a removal"""
    versions: dict[str, str]
    """Of the libraries that it was made with"""


def snapshot_path(dataset: Location, number: int) -> Location:
    """The file of snapshot `number`, from 1 on."""
    return dataset / "snapshots" / f"{number:06d}.json"


def snapshot_digest(
    parent: str, config: ResolvedDatasetConfig, ids: Int64Array, hashes: UInt8Array, removed: Int64Array
) -> str:
    """H(parent digest, config, ids, content hashes, removed ids), in hex: the same wherever the files lie.

    Args:
        parent: digest of the snapshot before, or "" for the first.
        config: as `dataset.json` records it.
        ids: int64 `[n]`, ascending, of the snapshot's images that are no duplicates.
        hashes: uint8 `[n, 16]`, BLAKE3-128 of each image's file, in the order of `ids`.
        removed: ids that this snapshot removes, int64 `[m]`, ascending.
    """
    state = new_hasher()
    state.update(canonical_json({"parent": parent, "config": floats_as_text(dataclasses.asdict(config))}))
    state.update(np.ascontiguousarray(ids, "<i8").tobytes() + np.ascontiguousarray(hashes).tobytes())
    state.update(np.ascontiguousarray(removed, "<i8").tobytes())
    return str(state.hexdigest(length=DIGEST_BYTES))


def read_snapshots(dataset: Location) -> list[Snapshot]:
    """The chain of snapshots, oldest first.

    Raises:
        DatasetError: if one is missing, damaged, or of another format or version.
    """
    names = [name for name in (dataset / "snapshots").names() if name.endswith(".json") and not name.startswith(".")]
    snapshots = [read_record(dataset / "snapshots" / name, Snapshot) for name in names]
    parent = ""
    for number, snapshot in enumerate(snapshots, start=1):
        if (snapshot.number, snapshot.parent) != (number, parent):
            raise DatasetError(f"{dataset}: snapshot {number} is missing from snapshots/; copy it back")
        parent = snapshot.digest
    return snapshots


def read_dataset(dataset: Location) -> tuple[ResolvedDatasetConfig, list[Snapshot]]:
    """What `dataset` is, and its chain of snapshots, oldest first: at least one.

    Raises:
        DatasetError: if there is no dataset, it holds no snapshot, a snapshot is missing, or a record is damaged or of
            another format or version.
    """
    if not record_path(dataset).exists():
        raise DatasetError(f"{dataset}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one")
    config, snapshots = read_config(dataset), read_snapshots(dataset)
    if not snapshots:
        raise DatasetError(f"{dataset}: preprocessing has not finished; run it again, it resumes where it stopped")
    return config, snapshots


def removed_ids(snapshots: Sequence[Snapshot]) -> Int64Array:
    """Every id that `snapshots` removed, int64 `[m]`."""
    return np.array([image_id for snapshot in snapshots for image_id in snapshot.removed], np.int64)
