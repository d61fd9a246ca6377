"""What a dataset is, whether it is whole, and one of its images as a file; without Ray."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from glo_core.common.arrays import Int64Array, UInt8Array
from glo_core.common.digests import digest_file
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.files import atomic_write
from glo_core.common.location import Location
from glo_core.dataset_format.blocks import BlockEntry, open_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.hash_index import key_column
from glo_core.dataset_format.manifest import find_ids, open_part, part_names, read_parts, rows_of
from glo_core.dataset_format.records import DatasetRecord, read_config, record_path
from glo_core.dataset_format.snapshots import Snapshot, read_snapshots, removed_ids, snapshot_digest
from pipelines.config import InspectJob

Snapshots = Sequence[Snapshot]


def inspect_dataset(job: InspectJob) -> None:
    """Print, verify and export as the job says.

    Raises:
        UserError: if there is no dataset, it is damaged, or it has no image of the name.
    """
    dataset = Location(job.dataset)
    if not record_path(dataset).exists():
        raise DatasetError(f"{dataset}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one")
    config, snapshots = read_config(dataset), read_snapshots(dataset)
    if job.export:
        print(export(dataset, config, snapshots, job.export, job.output.absolute()))
        return
    for line in describe(dataset, config, snapshots):
        print(line)
    if job.verify:
        problems = 0
        for problem in verify(dataset, config, snapshots):
            problems += 1
            print(f"wrong: {problem}", flush=True)
        if problems:
            raise DatasetError(f"{dataset}: {problems} thing(s) are wrong; copy the files named above back")
        print("verified: every block, id and row of the manifest is as the snapshots say")


# ---------------------------------------------------------------- what it is


def describe(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    """Lines for people."""
    mode = "RGB" if config.channels == 3 else "gray"
    size = sum(block.bytes for snapshot in snapshots for block in snapshot.blocks)
    blocks = sum(len(snapshot.blocks) for snapshot in snapshots)
    version, counts = DatasetRecord.format_version, [snapshot.counts for snapshot in snapshots]
    yield f"{dataset}  format {version}, {config.resolution} px {mode}, {config.code_shards} shards"
    yield f"policy     {', '.join(f'{key} {value}' for key, value in dataclasses.asdict(config).items())}"
    yield f"images     {sum(c.train for c in counts)} to train on, {sum(c.holdout for c in counts)} held out"
    yield f"blocks     {blocks} of {size / 1e6:.1f} MB in all"
    for snapshot in snapshots:
        # Counts below zero are of images that the snapshot removes.
        changes = {key: count for key, count in dataclasses.asdict(snapshot.counts).items() if count > 0}
        changes["removed"] = len(snapshot.removed)
        shown = ", ".join(f"{count} {key}" for key, count in changes.items())
        yield f"snapshot   {snapshot.number} {snapshot.digest[:12]}: {shown}"
    if not snapshots:
        yield "snapshot   none: preprocessing has not finished; run it again, it goes on where it stopped"
        return
    yield from _describe_manifest(dataset, config, snapshots)


def _describe_manifest(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    removed = removed_ids(snapshots)
    files, images, reasons = Counter[str](), Counter[str](), Counter[str]()
    # Training images of each shard [S], and how many images have each width and each height
    shards, widths, heights = np.zeros(config.code_shards, np.int64), Counter[int](), Counter[int]()
    columns = ["image_id", "source", "width", "height", "split", "status", "reason"]
    for table in read_parts(dataset, columns, before=len(snapshots) + 1):
        live = _live(table, removed)
        files += _counts(table.column("source"))
        images += _counts(live.column("source"))
        reasons += _counts(table.column("reason").drop_null())
        train = live.filter(pc.equal(live.column("split"), "train"))
        shards += np.bincount(train.column("image_id").to_numpy() % config.code_shards, minlength=config.code_shards)
        widths += _counts(live.column("width"))
        heights += _counts(live.column("height"))
    for source, base in snapshots[-1].sources.items():
        yield f"source     {source}: {images[source]} images of {files[source]} files, from {base}"
    for reason, count in reasons.most_common():
        yield f"rejected   {count}: {reason}"
    if widths:
        yield (
            f"sizes      {min(widths)}x{min(heights)} px at least, "
            f"{_median(widths):.0f}x{_median(heights):.0f} median, "
            f"{max(widths)}x{max(heights)} at most"
        )
    yield f"shards     {shards.min()} to {shards.max()} images each, {shards.mean():.1f} on average"


def _counts(column: Any) -> Counter[Any]:
    """How often each value of a `pyarrow.ChunkedArray` is there."""
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})


def _median(counts: Counter[int]) -> float:
    """The median of values by how often each is there; of an even number, the mean of the two in the middle."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    middle = [int(np.searchsorted(ends, place, "right")) for place in ((ends[-1] - 1) // 2, ends[-1] // 2)]
    return (values[middle[0]] + values[middle[1]]) / 2


def _live(table: Any, removed: Int64Array) -> Any:
    """The rows of a part of the manifest that are images and not removed."""
    images = table.filter(pc.equal(table.column("status"), "image"))
    return images.filter(pa.array(~np.isin(images.column("image_id").to_numpy(), removed)))


# ---------------------------------------------------------------- whether it is whole


def verify(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    """What is wrong, a line each; reads every byte of the dataset, and holds 24 bytes for each image of a snapshot."""
    last_id = -1
    for snapshot in snapshots:
        ids, hashes = [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
        entries = {block.name: block for block in snapshot.blocks}
        parts = part_names(dataset, of=snapshot.number)
        if {name.removesuffix(".parquet") for name in parts} != {name.removesuffix(".arrow") for name in entries}:
            yield f"snapshot {snapshot.number}: {len(parts)} parts of the manifest for {len(entries)} blocks"
        for part in parts:
            try:
                table = open_part(dataset, part)[0].read(["image_id", "content_hash", "split", "status"])
            except (UserError, OSError) as error:
                yield str(error).splitlines()[0]
                continue
            part_ids = table.column("image_id").to_numpy()
            if len(part_ids) and (part_ids[0] <= last_id or (np.diff(part_ids) <= 0).any()):
                yield f"{dataset / 'manifest' / part}: ids do not ascend from {last_id}"
            last_id = int(part_ids[-1]) if len(part_ids) else last_id
            images = table.filter(pc.equal(table.column("status"), "image"))
            ids.append(images.column("image_id").to_numpy())
            hashes.append(key_column(images.column("content_hash")))
            entry = entries.get(part.replace(".parquet", ".arrow"))
            if entry is not None:
                yield from _verify_block(dataset, config, entry, images)
        yield from _verify_digest(config, snapshot, np.concatenate(ids), np.concatenate(hashes))


def _verify_block(dataset: Location, config: ResolvedDatasetConfig, entry: BlockEntry, images: Any) -> Iterator[str]:
    """One block: bytes, checksum, and the ids of each record batch against the manifest."""
    place = dataset / "blocks" / entry.name
    try:
        reader = open_block(place, config)
        size = place.size()
        if size != entry.bytes:
            yield f"{place}: {size} bytes, where the snapshot has {entry.bytes}"
            return
        if digest_file(place) != entry.blake3:
            yield f"{place}: its checksum is not the snapshot's"
            return
        batches = [reader.get_batch(index).column("image_id").to_numpy() for index in range(reader.num_record_batches)]
    except (UserError, OSError, pa.ArrowException) as error:
        yield str(error).splitlines()[0]
        return
    # Ids of the block's images by the manifest [n], and whether each is in training
    listed, is_train = images.column("image_id").to_numpy(), np.asarray(pc.equal(images.column("split"), "train"))
    for shard, ids in enumerate(batches[:-1]):
        expected = listed[is_train & (listed % config.code_shards == shard)]
        if not np.array_equal(ids, expected):
            yield f"{place}: code shard {shard} holds {len(ids)} ids, which are not the manifest's {len(expected)}"
    if not np.array_equal(batches[-1], listed[~is_train]):
        yield f"{place}: the held-out ids are not the manifest's"


def _verify_digest(
    config: ResolvedDatasetConfig, snapshot: Snapshot, ids: Int64Array, hashes: UInt8Array
) -> Iterator[str]:
    """The digest of a snapshot against its images: ids int64 `[n]`, content hashes uint8 `[n, 16]`."""
    is_first, removed = ~np.isin(ids, list(snapshot.duplicate_of)), np.array(snapshot.removed, np.int64)
    if snapshot_digest(snapshot.parent, config, ids[is_first], hashes[is_first], removed) != snapshot.digest:
        yield f"snapshot {snapshot.number}: its digest is not that of the manifest's ids and content hashes"


# ---------------------------------------------------------------- one image


def export(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots, name: str, folder: Path) -> Path:
    """Write the image `name`, an id or source/path, to `folder` as <id>.png. Returns its path.

    Raises:
        UserError: if `name` is of no image of the dataset.
    """
    image_id = int(find_ids(dataset, [name], snapshots)[0])
    row = rows_of(dataset, np.array([image_id]), ["block", "split"]).to_pylist()[0]
    shard = config.code_shards if row["split"] == "holdout" else image_id % config.code_shards
    batch = open_block(dataset / "blocks" / row["block"], config).get_batch(shard)
    place = int(batch.column("image_id").to_numpy().searchsorted(image_id))
    side = config.resolution
    # [H * W * C] -> [H, W, C]
    pixels = np.frombuffer(batch.column("image")[place].as_py(), np.uint8).reshape(side, side, config.channels)
    path = folder / f"{image_id}.png"
    with atomic_write(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if config.channels == 1 else pixels).save(temporary, "PNG")
    return path
