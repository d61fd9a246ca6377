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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import ray.data
from tqdm import tqdm

from glo_core.common.errors import UserError
from glo_core.common.files import differences, sweep_temporary, write_json
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig, ResolvedDatasetConfig, config_record, read_config
from glo_core.dataset_format.manifest import part_name, part_names
from glo_core.dataset_format.snapshots import read_snapshots
from pipelines.common.ray_session import ray_session
from pipelines.common.tracking import Tracker
from pipelines.common.versions import library_versions
from pipelines.preprocess.autodetect import SuggestedFormat, suggest_format
from pipelines.preprocess.commit import commit
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.content_index import ContentIndex, EarlierSnapshots
from pipelines.preprocess.decode_task import decode_block
from pipelines.preprocess.diff import DiffStats
from pipelines.preprocess.file_index import ids_to_retry
from pipelines.preprocess.plan import Plan, make_plan, pending_plan
from pipelines.preprocess.removal import remove_images
from pipelines.preprocess.report import PreprocessReport, log_pictures
from pipelines.preprocess.sources import Source, find_sources
from pipelines.preprocess.writer_lock import exclusive_writer

FOLDERS = ("plans", "blocks", "manifest", "snapshots")
"""Of a dataset"""


# ---------------------------------------------------------------- the job


def preprocess(job: PreprocessJob) -> dict[str, Any]:
    """Bring the dataset up to date with the job's inputs; returns and prints a summary, empty if nothing was new.

    Raises:
        UserError: if an input is missing or holds no image, the dataset has another configuration, is in use, or the
            disk is full. The snapshots committed before stay as they are.
    """
    requested = DatasetConfig(**{f.name: getattr(job, f.name) for f in dataclasses.fields(DatasetConfig)})
    dataset, inputs = Location(job.dataset).absolute(), [Location(place).absolute() for place in job.input]
    sources = find_sources(inputs, {})  # A mistake leaves no trace.
    given = [str(source.given) for source in sources]
    config = _resolve_config(requested, dataset, sources)
    _check_config(dataset, config)
    started = time.perf_counter()
    with exclusive_writer(dataset) as still_held, _no_trace_of_a_mistake(dataset):
        _create(dataset, config)
        snapshots = read_snapshots(dataset)
        plan = pending_plan(dataset, len(snapshots))
        if job.remove:
            if plan is not None:
                raise UserError(
                    f"{dataset}: an interrupted run is not finished; run it again without --remove, then remove"
                )
            removed = remove_images(dataset, job.remove)
            if not inputs:
                return removed
            snapshots = read_snapshots(dataset)
        if plan is not None:
            print(f"preprocess: going on with plan {plan.number:06d} of {plan.rows} files", flush=True)
        else:
            retry = ids_to_retry(dataset, snapshots, everything=job.retry_rejected)
            survey, plan = make_plan(dataset, len(snapshots) + 1, config, inputs, on_change=job.on_change, retry=retry)
        if plan is None:
            _say_nothing_new(dataset, inputs, survey)
            return {}
        summary, complaint = _run_plan(job, dataset, config, plan, snapshots, started, still_held)
    print(summary.text(dataset), flush=True)
    if complaint:
        raise UserError(f"{complaint} (the other inputs are in the dataset)")
    # A plan taken up from an interrupted run may know less than the inputs given now.
    if not set(given) <= set(plan.inputs):
        return preprocess(dataclasses.replace(job, remove=()))
    return summary.record()


def _run_plan(
    job: PreprocessJob,
    dataset: Location,
    config: ResolvedDatasetConfig,
    plan: Plan,
    snapshots: Sequence[Mapping[str, Any]],
    started: float,
    still_held: Callable[[], None],
) -> tuple[PreprocessReport, str]:
    """Decode what is left of a plan and commit it, in one MLflow run."""
    tracker = Tracker.start(job, dataset.parent, name="preprocess")
    try:
        tracker.params({"config": dataclasses.asdict(config), "inputs": plan.inputs, "on_change": plan.on_change})
        tracker.tags({"glo.directory": dataset, "glo.version": library_versions()})
        earlier = EarlierSnapshots.read(dataset, snapshots)
        with ray_session():
            size = _decode_blocks(dataset, plan, earlier.contents)
        still_held()
        snapshot, complaint = commit(dataset, plan, snapshots, earlier, tracker.run_id)
        summary = PreprocessReport(snapshot, plan.survey, time.perf_counter() - started, size)
        tracker.metrics(summary.metrics())
        tracker.dataset(dataset, snapshot["digest"], "output")
        log_pictures(tracker, dataset, snapshot, config)
        tracker.finish()
    except BaseException:
        tracker.finish("FAILED")
        raise
    return summary, complaint


def _resolve_config(config: DatasetConfig, dataset: Location, sources: Sequence[Source]) -> ResolvedDatasetConfig:
    """`config` with a resolution and channels: the dataset's, or else what suits the images."""
    if (dataset / "dataset.json").exists():
        chosen = SuggestedFormat(read_config(dataset).resolution, read_config(dataset).channels)
    elif config.resolution and config.channels:
        chosen = SuggestedFormat(config.resolution, config.channels)
    else:
        chosen = suggest_format(sources, config.tight_crop)
        print(
            f"preprocess: {config.resolution or chosen.resolution} px and {config.channels or chosen.channels} "
            "channel(s) suit these images; --resolution and --channels choose otherwise",
            flush=True,
        )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(DatasetConfig)}
    format_ = {"resolution": config.resolution or chosen.resolution, "channels": config.channels or chosen.channels}
    return ResolvedDatasetConfig(**fields | format_)


def _check_config(dataset: Location, config: ResolvedDatasetConfig) -> None:
    if not (dataset / "dataset.json").exists():
        return
    changed = differences(dataclasses.asdict(read_config(dataset)), dataclasses.asdict(config))
    if changed:
        raise UserError(
            f"{dataset}: was made with another configuration ({'; '.join(changed)}); "
            "give another --dataset, or the old values"
        )


@contextlib.contextmanager
def _no_trace_of_a_mistake(dataset: Location) -> Iterator[None]:
    """After a user's error in a first run, forget the configuration, so that another can be given."""
    try:
        yield
    except UserError:
        if not (dataset / "plans").names() and not (dataset / "snapshots").names():
            (dataset / "dataset.json").unlink()
            if dataset.path is not None:
                for folder in FOLDERS:
                    with contextlib.suppress(OSError):
                        (dataset.path / folder).rmdir()
        raise


def _create(dataset: Location, config: ResolvedDatasetConfig) -> None:
    if dataset.path is not None:
        for folder in FOLDERS:
            (dataset.path / folder).mkdir(exist_ok=True)
            sweep_temporary(dataset.path / folder)
        sweep_temporary(dataset.path)
    if not (dataset / "dataset.json").exists():
        write_json(dataset / "dataset.json", config_record(config))


def _say_nothing_new(dataset: Location, inputs: Sequence[Location], survey: DiffStats) -> None:
    print(f"preprocess: nothing new in {len(inputs)} input(s), {survey.unchanged} files known; {dataset} is up to date")
    for line in survey.lines():
        print(f"preprocess: {line}", flush=True)


# ---------------------------------------------------------------- the blocks


def _decode_blocks(dataset: Location, plan: Plan, contents: ContentIndex) -> int:
    """Decode every block of the plan that is not done. Returns the bytes of the files read."""
    done = set(part_names(dataset))
    missing = [block for block in range(plan.blocks) if f"{part_name(plan.number, block)}.parquet" not in done]
    if not missing:
        return 0
    # Our own bar tells as much as Ray Data's lines about progress; its warnings stay.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # There is one operator, and nothing to reserve for others: the reservation keeps the second core idle for a second.
    context.op_resource_reservation_enabled = False
    tasks = [{"dataset": str(dataset), "number": plan.number, "block": block} for block in missing]
    counts = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
        functools.partial(decode_block, contents=ray.put(contents)), num_cpus=1
    )
    size = 0
    with tqdm(total=plan.rows, unit="img", desc="preprocess", mininterval=1) as bar:
        bar.update(plan.rows - sum(plan.block_rows(block) for block in missing))
        for row in counts.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            size += row["bytes"]
            bar.update(row["files"])
    return size
