"""What a preprocessing run tells: a closing summary, a contact sheet of new images, the names of rejected files."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from glo_core.common.arrays import UInt8Array
from glo_core.common.location import Location
from glo_core.dataset_format.blocks import open_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.snapshots import Snapshot, read_snapshots, removed_ids, snapshot_path
from glo_core.sampling.image_grid import grid, in_rows
from pipelines.common.progress import Progress
from pipelines.preprocess.diff_stats import DiffStats, display_name

SHEET_COLUMNS, SHEET_ROWS = 12, 6
NAMES_LISTED = 1000


class PreprocessReport(NamedTuple):
    """What one run did."""

    snapshot: Snapshot
    stats: DiffStats
    seconds: float
    """From the start of listing to the commit"""
    bytes: int
    """Of the files read"""

    def as_dict(self) -> dict[str, Any]:
        """Every figure by its name."""
        return {
            "found": self.stats.found,
            **dataclasses.asdict(self.snapshot.counts),
            "unchanged": self.stats.unchanged,
            "changed": self.stats.changed,
            "vanished": self.stats.vanished,
            "replaced": len(self.snapshot.replaced),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 1),
            "images_per_s": round(self.snapshot.counts.files / self.seconds, 1),
            "reasons": self.snapshot.rejected,
            "digest": self.snapshot.digest,
            "snapshot": self.snapshot.number,
        }

    def metrics(self) -> dict[str, float]:
        """The figures that are numbers."""
        return {key: value for key, value in self.as_dict().items() if isinstance(value, int | float)}

    def text(self, dataset: Location) -> str:
        """The report for people, in lines."""
        r = self.as_dict()
        lines = [
            f"found {r['found']} files, {r['unchanged']} of them unchanged",
            f"{r['files']} new: {r['train']} to train on, {r['holdout']} held out, {r['duplicate']} duplicate, "
            f"{r['rejected']} rejected",
            *(f"rejected {count}: {reason}" for reason, count in sorted(r["reasons"].items(), key=lambda i: -i[1])),
            *(["the rejected files' names are in the manifest, and in MLflow as rejected.txt"] if r["reasons"] else []),
            *self.stats.lines(),
            *(
                [f"replaced {r['replaced']}: the old images are removed, and counted off above"]
                if r["replaced"]
                else []
            ),
            f"{r['bytes'] / 1e6:.1f} MB read in {r['seconds']} s with start-up, {r['images_per_s']} images/s",
            f"{dataset} is at snapshot {r['snapshot']} ({r['digest'][:12]})",
        ]
        return "\n".join(f"preprocess: {line}" for line in lines)


def log_pictures(progress: Progress, dataset: Location, snapshot: Snapshot, config: ResolvedDatasetConfig) -> None:
    """Show in MLflow a sample of a snapshot's images, and list the files that it rejected."""
    folder = progress.log.directory
    images = sample_images(dataset, snapshot, config, SHEET_COLUMNS * SHEET_ROWS)
    if len(images):
        sheet = folder / "new_images.png"
        grid(in_rows(images, SHEET_COLUMNS)).save(sheet, compress_level=1)
        progress.picture(sheet, images_seen=snapshot.number)
    rejected = _rejected(dataset, snapshot.number)
    if rejected:
        listing = folder / "rejected.txt"
        listing.write_text("\n".join(rejected) + "\n", errors="backslashreplace")
        progress.artifact(listing)
    record = snapshot_path(dataset, snapshot.number)
    copy = folder / record.name
    copy.write_bytes(record.read_bytes())
    progress.artifact(copy)


def sample_images(dataset: Location, snapshot: Snapshot, config: ResolvedDatasetConfig, count: int) -> UInt8Array:
    """At most `count` training images of a snapshot that are not removed, uint8 `[n, H, W, C]`."""
    random = np.random.default_rng([config.seed, snapshot.number])
    blocks, removed = snapshot.blocks, removed_ids(read_snapshots(dataset))
    images: list[UInt8Array] = []
    for block in random.permutation(len(blocks))[:8]:  # Of a remote dataset, each one costs a request.
        reader = open_block(dataset / "blocks" / blocks[block].name, config)
        missing = -(-count // min(len(blocks), 8))
        for shard in random.permutation(config.code_shards):
            batch = reader.get_batch(int(shard))
            column = batch.column("image")
            live = np.flatnonzero(~np.isin(batch.column("image_id").to_numpy(), removed))
            rows = random.permutation(live)[:missing]
            images += [np.frombuffer(column[int(row)].as_py(), np.uint8) for row in rows]
            missing -= len(rows)
            if not missing:
                break
    side = config.resolution
    # [<= count, H * W * C] -> [<= count, H, W, C]
    return np.array(images[:count], np.uint8).reshape(-1, side, side, config.channels)


def _rejected(dataset: Location, number: int) -> list[str]:
    """A line for each file that a snapshot rejected, the first thousand."""
    lines: list[str] = []
    rest = 0
    for table in read_parts(dataset, ["source", "path", "member", "status", "reason", "detail"], of=number):
        rejected = table.filter(pc.equal(table.column("status"), "rejected"))
        listed = rejected.slice(0, NAMES_LISTED - len(lines))
        rest += len(rejected) - len(listed)
        for row in listed.to_pylist():
            detail = f" ({row['detail']})" if row["detail"] else ""
            lines.append(f"{display_name(row['source'], row['path'], row['member'])}: {row['reason']}{detail}")
    return lines + ([f"... and {rest} more: see the manifest"] if rest else [])
