"""What a dataset is, whether it is whole, and one of its images as a file; without Ray."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from glo_core.common.arrays import Int64Array
from glo_core.common.digests import digest_file
from glo_core.common.errors import UserError
from glo_core.common.files import atomic_write, open_parquet, read_json
from glo_core.common.location import Location
from glo_core.dataset_format.blocks import open_block
from glo_core.dataset_format.config import ResolvedDatasetConfig, read_config
from glo_core.dataset_format.hash_index import key_column
from glo_core.dataset_format.manifest import find_ids, part_names, read_parts, rows_of
from glo_core.dataset_format.snapshots import read_snapshots, snapshot_digest
from pipelines.config import InspectJob

Snapshots = Sequence[Mapping[str, Any]]


def inspect_dataset(job: InspectJob) -> None:
    """Print, verify and export as the job says.

    Raises:
        UserError: if there is no dataset, it is damaged, or it has no image of the name.
    """
    dataset = Location(job.dataset)
    if not (dataset / "dataset.json").exists():
        raise UserError(f"{dataset}: no dataset here (dataset.json is missing); jobs/preprocess.py makes one")
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
            raise UserError(f"{dataset}: {problems} thing(s) are wrong; copy the files named above back")
        print("verified: every block, id and row of the manifest is as the snapshots say")


# ---------------------------------------------------------------- what it is


def describe(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    """Lines for people."""
    record = read_json(dataset / "dataset.json")
    mode = "RGB" if config.channels == 3 else "grey"
    size = sum(block["bytes"] for snapshot in snapshots for block in snapshot["blocks"])
    blocks = sum(len(snapshot["blocks"]) for snapshot in snapshots)
    yield f"{dataset}  format {record['format_version']}, {config.resolution} px {mode}, {config.code_shards} shards"
    yield f"policy     {', '.join(f'{key} {value}' for key, value in record['config'].items())}"
    yield f"images     {_total(snapshots, 'train')} to train on, {_total(snapshots, 'holdout')} held out"
    yield f"blocks     {blocks} of {size / 1e6:.1f} MB in all"
    for s in snapshots:
        # What a snapshot removes is counted off its counts: they may be below zero.
        counts = {**{key: value for key, value in s["counts"].items() if value > 0}, "removed": len(s["removed"])}
        yield f"snapshot   {s['number']} {s['digest'][:12]}: {', '.join(f'{n} {key}' for key, n in counts.items())}"
    if not snapshots:
        yield "snapshot   none: preprocessing has not finished; run it again, it goes on where it stopped"
        return
    yield from _describe_manifest(dataset, config, snapshots)


def _total(snapshots: Snapshots, name: str) -> int:
    return sum(snapshot["counts"][name] for snapshot in snapshots)


def _describe_manifest(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    removed = _removed(snapshots)
    files, images, reasons = Counter[str](), Counter[str](), Counter[str]()
    shards, sides = np.zeros(config.code_shards, np.int64), [np.empty((0, 2), np.int64)]
    columns = ["image_id", "source", "width", "height", "split", "status", "reason"]
    for table in read_parts(dataset, columns, before=len(snapshots) + 1):
        live = _live(table, removed)
        files.update(table.column("source").to_pylist())
        images.update(live.column("source").to_pylist())
        reasons.update(table.column("reason").drop_null().to_pylist())
        train = live.filter(pc.equal(live.column("split"), "train"))
        shards += np.bincount(train.column("image_id").to_numpy() % config.code_shards, minlength=config.code_shards)
        sides.append(np.stack([live.column(name).to_numpy() for name in ("width", "height")], axis=1))
    for source, base in snapshots[-1]["sources"].items():
        yield f"source     {source}: {images[source]} images of {files[source]} files, from {base}"
    for reason, count in reasons.most_common():
        yield f"rejected   {count}: {reason}"
    both = np.concatenate(sides)
    if len(both):
        (width, height), (least, most) = np.median(both, axis=0), (both.min(axis=0), both.max(axis=0))
        yield (
            f"sizes      {least[0]}x{least[1]} px at least, {width:.0f}x{height:.0f} median, "
            f"{most[0]}x{most[1]} at most"
        )
    yield f"shards     {shards.min()} to {shards.max()} images each, {shards.mean():.1f} on average"


def _removed(snapshots: Snapshots) -> Int64Array:
    return np.array([i for snapshot in snapshots for i in snapshot["removed"]], np.int64)


def _live(table: Any, removed: Int64Array) -> Any:
    images = table.filter(pc.equal(table.column("status"), "image"))
    return images.filter(pa.array(~np.isin(images.column("image_id").to_numpy(), removed)))


# ---------------------------------------------------------------- whether it is whole


def verify(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots) -> Iterator[str]:
    """What is wrong, a line each; reads every byte of the dataset."""
    last_id = -1
    for snapshot in snapshots:
        ids, hashes = [np.empty(0, np.int64)], [np.empty((0, 16), np.uint8)]
        entry = {block["name"]: block for block in snapshot["blocks"]}
        parts = part_names(dataset, of=snapshot["number"])
        if {name.removesuffix(".parquet") for name in parts} != {name.removesuffix(".arrow") for name in entry}:
            yield f"snapshot {snapshot['number']}: {len(parts)} parts of the manifest for {len(entry)} blocks"
        for part in parts:
            table = _read_part(dataset, part)
            if isinstance(table, str):
                yield table
                continue
            part_ids = table.column("image_id").to_numpy()
            if len(part_ids) and (part_ids[0] <= last_id or (np.diff(part_ids) <= 0).any()):
                yield f"{dataset / 'manifest' / part}: ids do not ascend from {last_id}"
            last_id = int(part_ids[-1]) if len(part_ids) else last_id
            images = table.filter(pc.equal(table.column("status"), "image"))
            ids.append(images.column("image_id").to_numpy())
            hashes.append(key_column(images.column("content_hash")))
            name = part.replace(".parquet", ".arrow")
            yield from _verify_block(dataset, config, entry.get(name, {"name": name}), images)
        yield from _verify_digest(dataset, snapshot, np.concatenate(ids), np.concatenate(hashes))


def _read_part(dataset: Location, part: str) -> Any:
    try:
        return open_parquet(dataset / "manifest" / part).read(["image_id", "content_hash", "split", "status"])
    except (UserError, OSError) as error:
        return str(error).splitlines()[0]


def _verify_block(
    dataset: Location, config: ResolvedDatasetConfig, entry: Mapping[str, Any], images: Any
) -> Iterator[str]:
    """One block: bytes, checksum, and the ids of each record batch against the manifest."""
    place = dataset / "blocks" / entry["name"]
    try:
        reader = open_block(place, config)
        size = place.size()
        if size != entry.get("bytes", size):
            yield f"{place}: {size} bytes, where the snapshot has {entry['bytes']}"
            return
        if digest_file(place) != entry["blake3"]:
            yield f"{place}: its checksum is not the snapshot's"
            return
        batches = [reader.get_batch(index).column("image_id").to_numpy() for index in range(reader.num_record_batches)]
    except (UserError, OSError, pa.ArrowException) as error:
        yield str(error).splitlines()[0]
        return
    is_train = np.asarray(pc.equal(images.column("split"), "train"))
    expected = images.column("image_id").to_numpy()
    for shard, ids in enumerate(batches[:-1]):
        wanted = expected[is_train & (expected % config.code_shards == shard)]
        if not np.array_equal(ids, wanted):
            yield f"{place}: code shard {shard} holds {len(ids)} ids, which are not the manifest's {len(wanted)}"
    if not np.array_equal(batches[-1], expected[~is_train]):
        yield f"{place}: the held-out ids are not the manifest's"


def _verify_digest(dataset: Location, snapshot: Mapping[str, Any], ids: Int64Array, hashes: Any) -> Iterator[str]:
    kept = ~np.isin(ids, [int(i) for i in snapshot["duplicate_of"]])
    config, removed = read_json(dataset / "dataset.json")["config"], np.array(snapshot["removed"], np.int64)
    if snapshot_digest(snapshot["parent"], config, ids[kept], hashes[kept], removed) != snapshot["digest"]:
        yield f"snapshot {snapshot['number']}: its digest is not that of the manifest's ids and content hashes"


# ---------------------------------------------------------------- one image


def export(dataset: Location, config: ResolvedDatasetConfig, snapshots: Snapshots, name: str, folder: Path) -> Path:
    """Write one image to `folder` as <id>.png. Returns its path.

    Raises:
        UserError: if `name` is of no image of the dataset.
    """
    image_id = int(find_ids(dataset, [name], snapshots)[0])
    row = rows_of(dataset, np.array([image_id]), ["block", "split"]).to_pylist()[0]
    batch = config.code_shards if row["split"] == "holdout" else image_id % config.code_shards
    held = open_block(dataset / "blocks" / row["block"], config).get_batch(batch)
    place = held.column("image_id").to_numpy().searchsorted(image_id)
    side = config.resolution
    pixels = np.frombuffer(held.column("image")[int(place)].as_py(), np.uint8).reshape(side, side, config.channels)
    path = folder / f"{image_id}.png"
    with atomic_write(path) as temporary:
        Image.fromarray(pixels.squeeze(2) if config.channels == 1 else pixels).save(temporary, "PNG")
    return path
