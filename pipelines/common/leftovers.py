"""What MLflow missed of other stages of a run, sent by the command of any later stage."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

from glo_core.common.errors import UserError
from glo_core.common.file_lock import LOCK_FILE, file_lock
from glo_core.common.location import Location
from glo_core.common.records import write_record
from pipelines.common.progress import Progress
from pipelines.common.progress_log import LOG_FILE, has_ended, is_behind
from pipelines.common.records import RUN_FILE, read_run_record
from pipelines.common.tracking_config import TrackingConfig

TRACKING_FOLDER = "tracking"
"""Of a local dataset: a folder for each plan whose preprocessing MLflow does not have whole"""


def logs_of_run(run: Path) -> list[Path]:
    """Directories of the stages of `run` that keep a log, and of the preprocessing of its dataset."""
    logs = [run, *(path.parent for path in sorted(run.glob(f"*/*/{LOG_FILE}")))]
    with contextlib.suppress(UserError, OSError):
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
        is_of_plan = directory.parent.name == TRACKING_FOLDER
        with contextlib.suppress(UserError, OSError):  # In use, damaged, or not ours to write.
            if is_of_plan or is_behind(directory):
                with file_lock(directory):
                    if is_behind(directory) and not _send(config, root, directory):
                        return
                    if is_of_plan:
                        delete_if_sent(directory)


def delete_if_sent(directory: Path) -> None:
    """Delete the log of a plan, and its pictures, once MLflow has them and no command will add to them.

    The caller holds the lock of `directory`, which goes last, so that nobody else begins in what is half deleted.
    """
    with contextlib.suppress(OSError):
        if not is_behind(directory) and has_ended(directory):
            for path in directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK_FILE:
                    path.unlink()
            (directory / LOCK_FILE).unlink()
            directory.rmdir()
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
