"""Preprocessing: sources of images become indexed blocks, again for every new folder.

    list the sources -> plan (ids by seeded hash, committed) -> one Ray Data task per block -> snapshot

The plan is written before anything is decoded, so that an interrupted run goes on with the same ids. Pixels never
leave the task that decodes them; it returns one row of counts.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from glo_core.common.errors import ConfigError, DatasetError, UserError
from glo_core.common.files import differences, sweep_temporary
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig, ResolvedDatasetConfig
from glo_core.dataset_format.manifest import part_name, part_names
from glo_core.dataset_format.records import read_config, record_path, write_config
from glo_core.dataset_format.snapshots import Snapshot, read_snapshots
from pipelines.common.ray_data import import_ray_data
from pipelines.common.ray_session import ray_session
from pipelines.common.tracking import Tracker
from pipelines.common.versions import library_versions
from pipelines.preprocess.autodetect import SuggestedFormat, suggest_format
from pipelines.preprocess.commit import commit
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.content_index import CommittedContents, ContentIndex
from pipelines.preprocess.decode_task import decode_block
from pipelines.preprocess.diff_stats import DiffStats
from pipelines.preprocess.file_index import ids_to_retry
from pipelines.preprocess.plan import Plan, make_plan, pending_plan
from pipelines.preprocess.removal import remove_images
from pipelines.preprocess.report import PreprocessReport, log_pictures
from pipelines.preprocess.sources import Source, find_sources
from pipelines.preprocess.writer_lock import exclusive_writer

FOLDERS = ("plans", "blocks", "manifest", "snapshots")
"""Of a dataset"""

log = logging.getLogger("glo.preprocess")


# ---------------------------------------------------------------- the job


def preprocess(job: PreprocessJob) -> dict[str, Any]:
    """Bring the dataset up to date with the job's inputs.

    Prints a report, and returns its figures by name; they are empty if nothing was new.

    Raises:
        UserError: if an input is missing or holds no image, the dataset has another configuration, is damaged or in
            use, or the disk is full. The snapshots committed before stay as they are.
    """
    requested = DatasetConfig(**{f.name: getattr(job, f.name) for f in dataclasses.fields(DatasetConfig)})
    dataset, inputs = Location(job.dataset).absolute(), [Location(place).absolute() for place in job.input]
    sources = find_sources(inputs, {}, job.list_stores)  # Before the dataset is made: a mistake leaves no trace.
    config = _resolve_config(requested, dataset, sources)
    _check_config(dataset, config)
    started = time.perf_counter()
    with exclusive_writer(dataset) as require_lease, _no_trace_of_a_mistake(dataset):
        _create(dataset, config)
        if job.remove:
            removal = _remove(dataset, job.remove)
            if not inputs:
                return removal
        snapshots = read_snapshots(dataset)
        plan = pending_plan(dataset, len(snapshots))
        if plan is not None:
            log.info("going on with plan %06d of %d files", plan.number, plan.rows)
        else:
            retry = ids_to_retry(dataset, snapshots, everything=job.retry_rejected)
            stats, plan = make_plan(
                dataset,
                len(snapshots) + 1,
                config,
                inputs,
                on_change=job.on_change,
                retry=retry,
                list_stores=job.list_stores,
            )
        if plan is None:
            _print_nothing_new(dataset, inputs, stats)
            return {}
        report, complaint = _run_plan(job, dataset, config, plan, snapshots, started, require_lease)
    print(report.text(dataset), flush=True)
    if complaint:
        raise ConfigError(f"{complaint} (the other inputs are in the dataset)")
    # The plan of an interrupted run may lack inputs that this run has.
    if not {str(source.input) for source in sources} <= set(plan.record.inputs):
        return preprocess(dataclasses.replace(job, remove=()))
    return report.as_dict()


def _run_plan(
    job: PreprocessJob,
    dataset: Location,
    config: ResolvedDatasetConfig,
    plan: Plan,
    snapshots: Sequence[Snapshot],
    started: float,
    require_lease: Callable[[], None],
) -> tuple[PreprocessReport, str]:
    """Decode what is left of a plan and commit it, in one MLflow run. Returns a complaint as `commit` does."""
    tracker = Tracker.start(job, dataset.parent, name="preprocess")
    try:
        record = plan.record
        tracker.params({"config": dataclasses.asdict(config), "inputs": record.inputs, "on_change": record.on_change})
        tracker.tags({"glo.directory": dataset, "glo.version": library_versions()})
        committed = CommittedContents.read(dataset, snapshots)
        with ray_session():
            size = _decode_blocks(dataset, plan, committed.contents)
        require_lease()
        snapshot, complaint = commit(dataset, plan, snapshots, committed, tracker.run_id)
        report = PreprocessReport(snapshot, record.stats, time.perf_counter() - started, size)
        tracker.metrics(report.metrics())
        tracker.dataset(dataset, snapshot.digest, "output")
        log_pictures(tracker, dataset, snapshot, config)
        tracker.finish()
    except BaseException:
        tracker.finish("FAILED")
        raise
    return report, complaint


def _remove(dataset: Location, names: Sequence[str]) -> dict[str, Any]:
    """Remove images, print what was done, and return it by name; nothing if all were removed before."""
    if pending_plan(dataset, len(read_snapshots(dataset))) is not None:
        raise DatasetError(f"{dataset}: an interrupted run is not finished; run it again without `remove`, then remove")
    snapshot = remove_images(dataset, names)
    if snapshot is None:
        print(f"preprocess: nothing to remove; {dataset} is up to date", flush=True)
        return {}
    count = len(snapshot.removed)
    print(f"preprocess: removed {count} image(s); {dataset} is at snapshot {snapshot.number}", flush=True)
    return {"removed": count, "digest": snapshot.digest, "snapshot": snapshot.number}


def _resolve_config(config: DatasetConfig, dataset: Location, sources: Sequence[Source]) -> ResolvedDatasetConfig:
    """`config` with a resolution and channels: its own, else the dataset's, else what suits the images."""
    if record_path(dataset).exists():
        existing = read_config(dataset)
        suggested = SuggestedFormat(existing.resolution, existing.channels)
    elif config.resolution and config.channels:
        suggested = SuggestedFormat(config.resolution, config.channels)
    else:
        suggested = suggest_format(sources, config.tight_crop)
    resolution, channels = config.resolution or suggested.resolution, config.channels or suggested.channels
    if not record_path(dataset).exists() and not (config.resolution and config.channels):
        log.info(
            "images become %d px squares of %d channel(s)%s",
            resolution,
            channels,
            "" if config.resolution or config.channels else ", as suits these; both can be set",
        )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(DatasetConfig)}
    return ResolvedDatasetConfig(**fields | {"resolution": resolution, "channels": channels})


def _check_config(dataset: Location, config: ResolvedDatasetConfig) -> None:
    """Raise a `DatasetError` if the dataset is there and has another configuration."""
    if not record_path(dataset).exists():
        return
    changed = differences(dataclasses.asdict(read_config(dataset)), dataclasses.asdict(config))
    if changed:
        raise DatasetError(
            f"{dataset}: was made with another configuration ({'; '.join(changed)}); "
            "give another `dataset`, or the old values"
        )


@contextlib.contextmanager
def _no_trace_of_a_mistake(dataset: Location) -> Iterator[None]:
    """After a user's error in a first run, forget the configuration, so that another can be given."""
    try:
        yield
    except UserError:
        if not (dataset / "plans").names() and not (dataset / "snapshots").names():
            record_path(dataset).unlink()
            if dataset.path is not None:
                for folder in FOLDERS:
                    with contextlib.suppress(OSError):
                        (dataset.path / folder).rmdir()
        raise


def _create(dataset: Location, config: ResolvedDatasetConfig) -> None:
    """Make the folders and `dataset.json` where they are missing; delete what killed writers left."""
    if dataset.path is not None:
        for folder in FOLDERS:
            (dataset.path / folder).mkdir(exist_ok=True)
            sweep_temporary(dataset.path / folder)
        sweep_temporary(dataset.path)
    if not record_path(dataset).exists():
        write_config(dataset, config)


def _print_nothing_new(dataset: Location, inputs: Sequence[Location], stats: DiffStats) -> None:
    print(f"preprocess: nothing new in {len(inputs)} input(s), {stats.unchanged} files known; {dataset} is up to date")
    for line in stats.lines():
        print(f"preprocess: {line}", flush=True)


# ---------------------------------------------------------------- the blocks


def _decode_blocks(dataset: Location, plan: Plan, contents: ContentIndex) -> int:
    """Decode every block of the plan that is not done. Returns the bytes of the files read."""
    done, blocks = set(part_names(dataset)), range(len(plan.block_rows))
    missing = [block for block in blocks if f"{part_name(plan.number, block)}.parquet" not in done]
    if not missing:
        return 0
    # Our own bar tells as much as Ray Data's lines about progress; its warnings stay.
    import ray

    # Takes seconds: not for a run that finds nothing new, nor before a mistake is told.
    ray_data = import_ray_data()

    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # There is one operator, and nothing to reserve for others: the reservation keeps the second core idle for a second.
    context.op_resource_reservation_enabled = False
    tasks = [{"dataset": str(dataset), "number": plan.number, "block": block} for block in missing]
    counts = ray_data.from_items(tasks, override_num_blocks=len(tasks)).map(
        functools.partial(decode_block, contents=ray.put(contents)), num_cpus=1
    )
    size = 0
    with tqdm(total=plan.rows, unit="img", desc="preprocess", mininterval=1) as bar:
        bar.update(plan.rows - sum(plan.block_rows[block] for block in missing))
        for row in counts.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            size += row["bytes"]
            bar.update(row["files"])
    return size
