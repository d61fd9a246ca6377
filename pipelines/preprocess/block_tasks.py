"""The tasks of a plan: one Ray Data task for each block, and what they report."""

import functools
import logging
import secrets
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from glo_core.common.errors import UserError, one_line
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import part_name, part_names
from pipelines.common.ray_data import import_ray_data
from pipelines.preprocess.attempts import MAX_ATTEMPTS
from pipelines.preprocess.content_index import ContentIndex
from pipelines.preprocess.decode_task import PlanTask, decode_block
from pipelines.preprocess.plan import Plan, is_done

log = logging.getLogger("glo.preprocess")


def decode_blocks(dataset: Location, plan: Plan, contents: ContentIndex) -> int:
    """Decode every block of `plan` that is not done, each in a Ray task. Returns the bytes of the files read.

    Raises:
        UserError: that a task met, or if its process died again and again.
    """
    done, blocks = set(part_names(dataset, of=plan.number)), range(len(plan.block_rows))
    missing = [
        block
        for block in blocks
        if f"{part_name(plan.number, block)}.parquet" not in done or not is_done(dataset, plan, block)
    ]
    if not missing:
        return 0
    counts = _counts(dataset, plan, missing, contents)
    size = 0
    with tqdm(total=plan.rows, unit="img", desc="preprocess", mininterval=1) as bar:
        bar.update(plan.rows - sum(plan.block_rows[block] for block in missing))
        for row in _rows(counts):
            if row["error"]:
                raise UserError(row["error"])
            if row["attempts"] > 1:
                log.warning(
                    "a process or node died %d time(s) while it decoded %d files; they were decoded in another process",
                    row["attempts"] - 1,
                    row["files"],
                )
            size += row["bytes"]
            bar.update(row["files"])
    return size


def _counts(dataset: Location, plan: Plan, blocks: Sequence[int], contents: ContentIndex) -> Any:
    """The `ray.data.Dataset` of a `TaskReport` for each of `blocks`."""
    import ray
    from ray.util.annotations import RayDeprecationWarning

    # Takes seconds: not for a run that finds nothing new, nor before a mistake is told.
    ray_data = import_ray_data()
    # Our own bar tells as much as Ray Data's lines about progress; its warnings stay.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.data._internal.execution.streaming_executor").setLevel(logging.WARNING)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # There is one operator, and nothing to reserve for others: the reservation keeps the second core idle for a second.
    context.op_resource_reservation_enabled = False
    task = PlanTask(dataset, plan.number, plan.record.plan_id, secrets.token_hex(8), ray.put(contents))
    rows = ray_data.from_items([{"block": block} for block in blocks], override_num_blocks=len(blocks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # There is no other way to `max_retries`.
        # Ray would repeat a task that dies without limit. A block's mark counts its attempts, and says what is wrong.
        return rows.map(functools.partial(decode_block, plan=task), num_cpus=1, max_retries=2 * MAX_ATTEMPTS)


def _rows(tasks: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Ray dataset.

    Raises:
        UserError: if a process or a node died again and again before it could say why.
    """
    import ray

    try:
        yield from tasks.iter_rows()
    except ray.exceptions.RayTaskError:
        raise  # An exception of our own code
    except ray.exceptions.RayError as error:
        raise UserError(
            f"the tasks that decode images die ({one_line(error)[:300]}); if memory is short, give the machine more, "
            "and run the same command again"
        ) from error
