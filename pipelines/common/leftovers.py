"""What MLflow missed of other stages of a run, sent by the command of any later stage."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from glo_core.common.errors import UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location
from glo_core.common.records import write_record
from pipelines.common.progress import Progress
from pipelines.common.progress_log import LOG_FILE, is_behind
from pipelines.common.records import RUN_FILE, read_run_record
from pipelines.common.tracking import TrackingConfig

TRACKING_FOLDER = "tracking"
"""Of a local dataset: a folder for each plan whose preprocessing MLflow does not have whole"""


def logs_of_run(run: Path) -> list[Path]:
    """Directories of the stages of `run` that keep a log, and of the preprocessing of its dataset."""
    logs = [run, *(path.parent for path in sorted(run.glob(f"*/*/{LOG_FILE}")))]
    with contextlib.suppress(UserError):
        record = read_run_record(run)
        dataset = Location(record.paths["dataset"]).path if record and "dataset" in record.paths else None
        logs += logs_of_dataset(dataset) if dataset is not None else []
    return logs


def logs_of_dataset(dataset: Path) -> list[Path]:
    """Directories of the plans of `dataset` that keep a log."""
    return [path.parent for path in sorted((dataset / TRACKING_FOLDER).glob(f"*/{LOG_FILE}"))]


def send_leftovers(config: TrackingConfig, root: Path | Location, directories: Iterable[Path]) -> None:
    """Send what MLflow lacks of the logs in `directories`; one that a running command holds is left to it.

    Where MLflow does not answer, a warning says so. The folder of a plan is deleted once MLflow has it whole.
    """
    for directory in directories:
        with contextlib.suppress(UserError, OSError):  # In use, damaged, or not ours to write.
            if is_behind(directory):
                with file_lock(directory):
                    if not _send(config, root, directory):
                        return
        if directory.parent.name == TRACKING_FOLDER:
            delete_if_sent(directory)


def delete_if_sent(directory: Path) -> None:
    """Delete the log of a plan, and its pictures, once MLflow has them."""
    with contextlib.suppress(OSError):
        if not is_behind(directory):
            shutil.rmtree(directory)
            directory.parent.rmdir()  # Unless another plan has a log.


def _send(config: TrackingConfig, root: Path | Location, directory: Path) -> bool:
    """Whether MLflow answered."""
    record = read_run_record(directory)
    if record is not None:
        progress = Progress(config, root, record.stage, directory, record.mlflow_run_id)
    else:  # <folder>/<dataset>/tracking/<plan>: the default database of preprocessing is in the first of these.
        progress = Progress(config, directory.parents[2], "preprocess", directory)
    if not progress.try_to_send():
        return False
    if record is not None and record.mlflow_run_id != progress.run_id:
        write_record(directory / RUN_FILE, dataclasses.replace(record, mlflow_run_id=progress.run_id))
    return True
