"""Preprocessing: sources of images become indexed blocks, again for every new folder.

    list the sources -> plan (ids by seeded hash, committed) -> one Ray Data task per block -> snapshot

The plan is written before anything is decoded, so that an interrupted run goes on with the same ids. Pixels never
leave the task that decodes them; it returns one row of counts.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from glo_core.common.errors import ConfigError, DatasetError
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig, ResolvedDatasetConfig
from glo_core.dataset_format.records import record_path
from glo_core.dataset_format.snapshots import Snapshot, read_snapshots
from pipelines.common.ray_session import ray_session
from pipelines.common.versions import library_versions
from pipelines.preprocess.block_tasks import decode_blocks
from pipelines.preprocess.commit import commit
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.content_index import CommittedContents
from pipelines.preprocess.create import (
    check_config,
    create,
    forget_if_empty,
    no_trace_of_a_mistake,
    resolve_config,
    sweep_uncommitted,
)
from pipelines.preprocess.diff_stats import DiffStats
from pipelines.preprocess.erasure import erase_removed
from pipelines.preprocess.file_index import ids_to_retry
from pipelines.preprocess.guards import SourceChanges, refuse_mass_change
from pipelines.preprocess.outputs import refuse_nesting
from pipelines.preprocess.plan import (
    Plan,
    discard_plan,
    make_plan,
    pending_plan,
    plan_path,
)
from pipelines.preprocess.progress import delete_pictures, plan_progress, send_rest
from pipelines.preprocess.removal import remove_images
from pipelines.preprocess.report import PreprocessReport, log_pictures
from pipelines.preprocess.sources import find_sources
from pipelines.preprocess.writer_lock import exclusive_writer

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
    refuse_nesting(dataset, sources)
    config = resolve_config(requested, dataset, sources)
    check_config(dataset, config)
    started = time.perf_counter()
    with exclusive_writer(dataset) as require_lease, no_trace_of_a_mistake(dataset, require_lease):
        if record_path(dataset).exists():  # Another writer may have made it meanwhile.
            config = resolve_config(requested, dataset, sources)
            check_config(dataset, config)
        require_lease()
        create(dataset, config)
        done = _discard_and_remove(job, dataset, require_lease)
        if not inputs:
            return done
        snapshots = read_snapshots(dataset)
        pending = pending_plan(dataset, len(snapshots))
        if pending is not None:
            _print_pending(job, pending)
            plan = pending
        else:
            sweep_uncommitted(dataset, snapshots)
            retry = ids_to_retry(dataset, snapshots, everything=job.retry_rejected)
            stats, new_plan = make_plan(
                dataset,
                len(snapshots) + 1,
                config,
                inputs,
                on_change=job.on_change,
                retry=retry,
                list_stores=job.list_stores,
                require_lease=require_lease,
                yes=job.yes,
            )
            if new_plan is None:
                send_rest(job, dataset, but=None)
                _print_nothing_new(dataset, inputs, stats)
                return {}
            plan = new_plan
        send_rest(job, dataset, but=plan.number)
        report, complaint = _run_plan(job, dataset, config, plan, snapshots, started, require_lease)
    print(report.text(dataset), flush=True)
    if complaint:
        raise ConfigError(f"{complaint} (the other inputs are in the dataset)")
    # The plan of an interrupted run may lack inputs that this run has, and did not try rejected files again.
    covered = {str(source.input) for source in sources} <= set(plan.record.inputs)
    if pending is not None and (job.retry_rejected or not covered):
        return preprocess(dataclasses.replace(job, remove=(), discard_plan=False))
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
    with plan_progress(job, dataset, plan.number) as progress:
        record = plan.record
        progress.describe(
            params={"config": dataclasses.asdict(config), "inputs": record.inputs, "on_change": job.on_change},
            tags={"glo.directory": dataset, "glo.version": library_versions()},
        )
        committed = CommittedContents.read(dataset, snapshots)
        with ray_session():
            size = decode_blocks(dataset, plan, committed.contents)
        require_lease()
        snapshot, complaint = commit(dataset, plan, snapshots, committed, progress.run_id, on_change=job.on_change)
        report = PreprocessReport(snapshot, record.stats, time.perf_counter() - started, size)
        progress.metrics(report.metrics())
        progress.dataset(dataset, snapshot.digest, "output")
        log_pictures(progress, dataset, snapshot, config)
    return report, complaint


def _discard_and_remove(job: PreprocessJob, dataset: Location, require_lease: Callable[[], None]) -> dict[str, Any]:
    """Forget a pending plan, and remove images, as the job says. Returns what was done by name."""
    done: dict[str, Any] = {}
    if job.discard_plan:
        done |= _discard(dataset, require_lease)
    if job.remove or job.erase:
        _require_no_plan(dataset)
    if job.remove:
        done |= _remove(dataset, job.remove, require_lease)
    if job.erase:
        done |= _erase(dataset, require_lease)
    if not job.input:
        forget_if_empty(dataset)
    return done


def _discard(dataset: Location, require_lease: Callable[[], None]) -> dict[str, Any]:
    """Forget the pending plan, print that, and return its number."""
    number = len(read_snapshots(dataset)) + 1
    if not plan_path(dataset, number).exists():
        raise DatasetError(f"{dataset}: no plan is pending, so that `discard_plan` has nothing to forget; leave it out")
    require_lease()
    discard_plan(dataset, number)
    print(f"preprocess: forgot plan {number} and what was decoded of it; its files are new again", flush=True)
    return {"discarded": number}


def _require_no_plan(dataset: Location) -> None:
    if plan_path(dataset, len(read_snapshots(dataset)) + 1).exists():
        raise DatasetError(
            f"{dataset}: an interrupted run is not finished; run it again without `remove` and `erase`, or give "
            "`discard_plan` to forget it, then remove"
        )


def _erase(dataset: Location, require_lease: Callable[[], None]) -> dict[str, Any]:
    """Erase the pixels of removed images, print what was done, and return it by name."""
    snapshots = read_snapshots(dataset)
    if not snapshots:
        raise DatasetError(f"{dataset}: holds no image yet, so that `erase` has nothing to do; leave it out")
    sweep_uncommitted(dataset, snapshots)
    count = erase_removed(dataset, require_lease)
    delete_pictures(dataset)
    print(
        f"preprocess: erased the pixels of every removed image, {count} block(s) written anew; codes of theirs go with "
        "a run's next checkpoint, and pictures that were drawn of them stay where they were drawn",
        flush=True,
    )
    return {"erased_blocks": count}


def _remove(dataset: Location, names: Sequence[str], require_lease: Callable[[], None]) -> dict[str, Any]:
    """Remove images, print what was done, and return it by name; nothing if all were removed before."""
    snapshot = remove_images(dataset, names, require_lease)
    if snapshot is None:
        print(f"preprocess: nothing to remove; {dataset} is up to date", flush=True)
        return {}
    count = len(snapshot.removed)
    print(f"preprocess: removed {count} image(s); {dataset} is at snapshot {snapshot.number}", flush=True)
    return {"removed": count, "digest": snapshot.digest, "snapshot": snapshot.number}


def _print_pending(job: PreprocessJob, plan: Plan) -> None:
    """Say that the plan of an interrupted run comes first, and what becomes of this command's options."""
    log.info("going on with plan %06d of %d files", plan.number, plan.rows)
    if job.on_change != plan.record.on_change:
        stats = plan.record.stats
        if not job.yes and job.on_change == "replace":
            known = stats.unchanged + stats.changed
            refuse_mass_change([SourceChanges(job.input[0], known, stats.changed, 0)], job.on_change)
        log.info("files that changed: %s, as this command says, not %s", job.on_change, plan.record.on_change)
    if job.retry_rejected:
        log.info("rejected files are tried again after this plan")


def _print_nothing_new(dataset: Location, inputs: Sequence[Location], stats: DiffStats) -> None:
    print(f"preprocess: nothing new in {len(inputs)} input(s), {stats.unchanged} files known; {dataset} is up to date")
    for line in stats.lines():
        print(f"preprocess: {line}", flush=True)
