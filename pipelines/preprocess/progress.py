"""What a preprocessing run tells MLflow: a log for each plan, in the dataset until MLflow has it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location
from pipelines.common.leftovers import TRACKING_FOLDER, delete_if_sent, logs_of_dataset, send_leftovers
from pipelines.common.progress import Progress, failure_ends
from pipelines.common.tracking_config import TrackingConfig


@contextlib.contextmanager
def plan_progress(job: TrackingConfig, dataset: Location, number: int) -> Iterator[Progress]:
    """The log of plan `number`, sent to one MLflow run, which ends with the block.

    An object store takes no lines one by one: of a remote dataset the log lies in the temporary directory, and what
    MLflow misses is lost.

    Raises:
        UserError: if MLflow does not answer at the beginning.
    """
    with contextlib.ExitStack() as closing:
        if dataset.path is not None:
            directory = dataset.path / TRACKING_FOLDER / f"{number:06d}"
        else:
            directory = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="glo-")))
        closing.enter_context(file_lock(directory))
        if dataset.path is not None:
            closing.callback(delete_if_sent, directory)  # Before the lock is released.
        progress = Progress(job, dataset.parent, "preprocess", directory)
        progress.connect()
        with failure_ends(progress.finish):
            yield progress
        progress.finish("FINISHED")


def send_rest(job: TrackingConfig, dataset: Location, but: int | None) -> None:
    """Send what MLflow missed of earlier runs; not of plan `but`, which this run goes on with."""
    if dataset.path is not None:
        logs = [path for path in logs_of_dataset(dataset.path) if but is None or path.name != f"{but:06d}"]
        send_leftovers(job, dataset.parent, logs)


def delete_pictures(dataset: Location) -> None:
    """Delete pictures that MLflow has missed so far: they may show images that were removed since."""
    if dataset.path is not None:
        for directory in logs_of_dataset(dataset.path):
            for picture in directory.glob("*.png"):
                picture.unlink(missing_ok=True)
