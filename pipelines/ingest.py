"""Preprocessing: folders of image files become indexed blocks, again for every new folder.

    list the folders -> plan (ids by seeded hash, committed) -> one Ray Data task per block -> snapshot

The plan is written before anything is decoded, so that an interrupted run goes on with the same ids. Pixels never
leave the task that decodes them; it returns one row of counts.
"""

import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from tqdm import tqdm

from glo_core.blocks import DatasetConfig, config_record, open_block, read_config, snapshot_digest, write_block
from glo_core.decode import Decoded, RejectedImageError, decode
from glo_core.files import (
    FORMAT_VERSION,
    UserError,
    differences,
    locked,
    read_json,
    read_parquet,
    replacing,
    sweep_temporary,
    write_json,
)
from pipelines.plan import Plan, make_plan, pending_plan, plan_path, read_plan, snapshot_path
from pipelines.session import ray_session
from pipelines.stage import library_versions
from pipelines.tracking import Tracker, TrackingConfig

MANIFEST = pa.schema(
    [
        ("image_id", pa.int64()),
        ("source", pa.string()),
        ("path", pa.binary()),
        ("member", pa.string()),
        ("label", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("content_hash", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("block", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("duplicate_of", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PreprocessJob(DatasetConfig, TrackingConfig):
    """Turn folders of image files into an indexed dataset, or append new folders to one."""

    input: tuple[Path, ...]
    """Folders of image files, searched recursively"""
    dataset: Path
    """Directory of the dataset, made if it is not there"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.input:
            raise ValueError("`input` (=[]) must name at least one folder")


# ---------------------------------------------------------------- the job


def preprocess(job: PreprocessJob) -> dict[str, Any]:
    """Bring the dataset up to date with the job's folders; returns and prints a summary.

    Raises:
        UserError: if a folder is missing or holds no image, the dataset has another configuration, is in use, or the
            disk is full. The snapshots committed before stay as they are.
    """
    config = DatasetConfig(**{f.name: getattr(job, f.name) for f in dataclasses.fields(DatasetConfig)})
    folders = _check_folders(job.input)
    _check_config(job.dataset, config)
    started = time.perf_counter()
    with locked(job.dataset):
        _create(job.dataset, config)
        plan = pending_plan(job.dataset)
        if plan is not None:
            print(f"preprocess: going on with plan {plan.number:06d} of {plan.rows} files", flush=True)
        else:
            plan = make_plan(job.dataset, config, folders)
        if plan is None:
            print(
                f"preprocess: nothing new in {len(folders)} folder(s); {job.dataset} is up to date",
                flush=True,
            )
            return {}
        tracker = Tracker.start(job, job.dataset.parent, name="preprocess")
        try:
            tracker.params(
                {
                    "config": dataclasses.asdict(config),
                    "inputs": [str(folder) for folder in folders],
                    "versions": library_versions(),
                }
            )
            with ray_session():
                _decode_blocks(job.dataset, plan)
            snapshot, complaint = _commit(job.dataset, config, plan, tracker.run_id)
            summary = _summary(snapshot, plan, time.perf_counter() - started)
            tracker.metrics({key: value for key, value in summary.items() if isinstance(value, int | float)})
            tracker.dataset(job.dataset, snapshot["digest"], "output")
            tracker.artifact(snapshot_path(job.dataset, plan.number))
            tracker.finish()
        except BaseException:
            tracker.finish("FAILED")
            raise
    _print_summary(summary, job.dataset)
    if complaint:
        raise UserError(f"{complaint} (the other folders are in the dataset)")
    # A plan taken up from an interrupted run may know less than the folders given now.
    if not {str(folder) for folder in folders} <= set(plan.inputs):
        return preprocess(job)
    return summary


def _check_folders(inputs: Sequence[Path]) -> list[Path]:
    for folder in inputs:
        if not folder.is_dir():
            kind = "a file" if folder.exists() else "missing"
            raise UserError(f"input={folder}: {kind}, where a folder of image files was expected")
    return list(dict.fromkeys(folder.resolve() for folder in inputs))


def _check_config(dataset: Path, config: DatasetConfig) -> None:
    if not (dataset / "dataset.json").exists():
        return
    changed = differences(dataclasses.asdict(read_config(dataset)), dataclasses.asdict(config))
    if changed:
        raise UserError(
            f"{dataset}: was made with another configuration ({'; '.join(changed)}); "
            "give another --dataset, or the old values"
        )


def _create(dataset: Path, config: DatasetConfig) -> None:
    for name in ("plans", "blocks", "manifest", "snapshots"):
        (dataset / name).mkdir(exist_ok=True)
        sweep_temporary(dataset / name)
    if not (dataset / "dataset.json").exists():
        write_json(dataset / "dataset.json", config_record(config))


def _manifest_path(dataset: Path, number: int, block: int) -> Path:
    return dataset / "manifest" / f"{number:06d}-{block:05d}.parquet"


# ---------------------------------------------------------------- decode: one block, one task, one file


def _decode_blocks(dataset: Path, plan: Plan) -> None:
    missing = [block for block in range(plan.blocks) if not _manifest_path(dataset, plan.number, block).exists()]
    if not missing:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    tasks = [{"dataset": str(dataset), "number": plan.number, "block": block} for block in missing]
    counts = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(decode_block, num_cpus=1)
    with tqdm(total=plan.rows, unit="img", desc="preprocess", mininterval=1) as bar:
        bar.update(plan.rows - sum(_block_rows(plan, block) for block in missing))
        for row in counts.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            bar.update(row["files"])


def _block_rows(plan: Plan, block: int) -> int:
    return int(pq.ParquetFile(plan.path).metadata.row_group(block).num_rows)


def decode_block(task: dict[str, Any]) -> dict[str, Any]:
    """Decode one row group of a plan into one block and its part of the manifest. Runs in a Ray task.

    A retry is harmless: file names are fixed, and a file appears whole or not at all.
    """
    try:
        files = _write_block_and_manifest(Path(task["dataset"]), int(task["number"]), int(task["block"]))
    except UserError as error:  # An exception of a task would reach the user as Ray's traceback.
        return {"files": 0, "error": str(error)}
    return {"files": files, "error": ""}


def _write_block_and_manifest(root: Path, number: int, block: int) -> int:
    config, plan = read_config(root), read_plan(plan_path(root, number))
    planned = pq.ParquetFile(plan.path).read_row_group(block).to_pylist()
    name = f"{number:06d}-{block:05d}.arrow"
    pixels = np.empty((len(planned), config.resolution, config.resolution, config.channels), np.uint8)
    first_with: dict[bytes, int] = {}
    manifest: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for file in planned:
        entry, decoded = _ingest_file(file, plan.sources[file["source"]], config, first_with)
        if decoded is not None:
            pixels[len(kept)] = decoded.pixels
            kept.append(file)
            entry["block"] = name
        manifest.append(entry)
    ids = np.array([file["image_id"] for file in kept], np.int64)
    held_out = np.array([file["held_out"] for file in kept], np.bool_)
    write_block(root / "blocks" / name, ids, pixels[: len(kept)], held_out, config.code_shards)
    with replacing(_manifest_path(root, number, block)) as temporary:
        pq.write_table(pa.Table.from_pylist(manifest, schema=MANIFEST), temporary)
    return len(planned)


def _ingest_file(
    file: Mapping[str, Any], folder: str, config: DatasetConfig, first_with: dict[bytes, int]
) -> tuple[dict[str, Any], Decoded | None]:
    """The manifest row of one planned file, and its pixels if it is an image that no lower id of the block has."""
    parts = file["path"].split(b"/")
    entry: dict[str, Any] = {
        "image_id": file["image_id"],
        "source": file["source"],
        "path": file["path"],
        "bytes": file["bytes"],
        "mtime_ns": file["mtime_ns"],
        "split": "holdout" if file["held_out"] else "train",
        "label": parts[0].decode(errors="replace") if len(parts) > 1 else "",
    }
    try:
        data = (Path(folder) / os.fsdecode(file["path"])).read_bytes()
    except OSError as error:
        return entry | {"status": "rejected", "reason": f"unreadable: {error.strerror}"}, None
    content = hashlib.blake2b(data, digest_size=16).digest()
    entry["content_hash"] = content
    if content in first_with:
        return entry | {"status": "duplicate", "duplicate_of": first_with[content]}, None
    try:
        decoded = decode(data, config)
    except RejectedImageError as error:
        return entry | {"status": "rejected", "reason": str(error)}, None
    first_with[content] = file["image_id"]
    return entry | {"status": "image", "width": decoded.width, "height": decoded.height}, decoded


# ---------------------------------------------------------------- commit


def _commit(dataset: Path, config: DatasetConfig, plan: Plan, mlflow_run_id: str) -> tuple[dict[str, Any], str]:
    """Write the snapshot: from then on its images are part of the dataset.

    Returns it, and a complaint about a folder that never gave an image ("" if there is none).
    """
    columns = ["image_id", "source", "content_hash", "split", "status", "reason"]
    parts = [_manifest_path(dataset, plan.number, block) for block in range(plan.blocks)]
    manifest = pa.concat_tables(read_parquet(part, columns) for part in parts)
    images = manifest.filter(pc.equal(manifest.column("status"), "image"))
    earlier = _earlier_images(dataset, plan)
    complaint = _without_image(plan, manifest, earlier)
    if complaint and not len(images):
        _discard(dataset, plan)
        raise UserError(complaint)
    late = _late_duplicates(images, earlier)
    ids = images.column("image_id").to_numpy()
    removed = np.array(sorted(late), np.int64)
    kept = ~np.isin(ids, removed)
    train = kept & np.asarray(pc.equal(images.column("split"), "train"))
    hashes = [value for value, keep in zip(images.column("content_hash").to_pylist(), kept, strict=True) if keep]
    status = Counter(manifest.column("status").to_pylist())
    reasons = Counter(reason for reason in manifest.column("reason").to_pylist() if reason)
    parent = read_json(snapshot_path(dataset, plan.number - 1))["digest"] if plan.number > 1 else ""
    blocks = [dataset / "blocks" / f"{plan.number:06d}-{block:05d}.arrow" for block in range(plan.blocks)]
    snapshot = {
        "format_version": FORMAT_VERSION,
        "number": plan.number,
        "parent": parent,
        "digest": snapshot_digest(parent, config, ids[kept], hashes, removed),
        "counts": {
            "files": plan.rows,
            "train": int(train.sum()),
            "holdout": int((kept & ~train).sum()),
            "duplicate": status["duplicate"] + len(removed),
            "rejected": status["rejected"],
        },
        "rejected": dict(reasons),
        "removed": removed.tolist(),
        "duplicate_of": {str(k): late[k] for k in sorted(late)},
        "blocks": [{"name": block.name, "bytes": block.stat().st_size} for block in blocks],
        "sources": plan.sources,
        "versions": library_versions(),
        "mlflow_run_id": mlflow_run_id,
    }
    for block in blocks:
        open_block(block, config)  # A block that was lost or cut short since must not be committed.
    write_json(snapshot_path(dataset, plan.number), snapshot)
    return snapshot, complaint


class Earlier(NamedTuple):
    """What the snapshots before a plan hold."""

    first_with: dict[bytes, int]
    """Lowest id of each content"""
    sources: set[str]
    """Sources that gave an image"""


def _earlier_images(dataset: Path, plan: Plan) -> Earlier:
    earlier = Earlier({}, set())
    for path in sorted((dataset / "manifest").glob("*.parquet")):
        if int(path.name.split("-")[0]) < plan.number:
            table = read_parquet(path, ["image_id", "source", "content_hash", "status"])
            table = table.filter(pc.equal(table.column("status"), "image"))
            earlier.sources.update(table.column("source").to_pylist())
            for content, image_id in _pairs(table, "content_hash", "image_id"):
                earlier.first_with.setdefault(content, image_id)
    return earlier


def _pairs(table: Any, first: str, second: str) -> Iterator[tuple[Any, Any]]:
    return zip(table.column(first).to_pylist(), table.column(second).to_pylist(), strict=True)


def _without_image(plan: Plan, manifest: Any, earlier: Earlier) -> str:
    """The complaint about the first folder that never gave an image, or ""."""
    found: dict[str, list[str]] = {}
    for source, reason in _pairs(manifest, "source", "reason"):
        found.setdefault(source, []).append(reason)
    for source, reasons in found.items():
        if all(reasons) and source not in earlier.sources:
            return (
                f"input={plan.sources[source]}: none of its {len(reasons)} new files is an image "
                f"({Counter(reasons).most_common(1)[0][0]}); give a folder of image files"
            )
    return ""


def _discard(dataset: Path, plan: Plan) -> None:
    """Forget a plan in which nothing is an image, so that the mistake leaves no trace."""
    for block in range(plan.blocks):
        _manifest_path(dataset, plan.number, block).unlink()
        (dataset / "blocks" / f"{plan.number:06d}-{block:05d}.arrow").unlink()
    plan.path.unlink()


def _late_duplicates(images: Any, earlier: Earlier) -> dict[int, int]:
    """Images whose bytes a lower id of another block or snapshot has: id -> that lower id."""
    first = dict(earlier.first_with)
    late = {}
    for content, image_id in _pairs(images, "content_hash", "image_id"):
        lowest = first.setdefault(content, image_id)
        if lowest != image_id:
            late[image_id] = lowest
    return late


def _summary(snapshot: Mapping[str, Any], plan: Plan, seconds: float) -> dict[str, Any]:
    counts = snapshot["counts"]
    return {
        **counts,
        "unchanged": plan.unchanged,
        "seconds": round(seconds, 1),
        "images_per_s": round(counts["files"] / seconds, 1),
        "reasons": snapshot["rejected"],
        "digest": snapshot["digest"],
        "snapshot": snapshot["number"],
    }


def _print_summary(summary: Mapping[str, Any], dataset: Path) -> None:
    print(
        f"preprocess: {summary['files']} new files ({summary['unchanged']} known): {summary['train']} to train on, "
        f"{summary['holdout']} held out, {summary['duplicate']} duplicate, {summary['rejected']} rejected; "
        f"{summary['seconds']} s with start-up, {summary['images_per_s']} images/s"
    )
    for reason, count in sorted(summary["reasons"].items(), key=lambda item: -item[1]):
        print(f"preprocess: rejected {count}: {reason}")
    print(f"preprocess: {dataset} is at snapshot {summary['snapshot']} ({summary['digest'][:12]})", flush=True)
