"""What a command of any stage does with the logs of others."""

from pathlib import Path

import mlflow
import pytest

from glo_core.common.file_lock import file_lock
from pipelines.common.leftovers import TRACKING_FOLDER, logs_of_dataset, send_leftovers
from pipelines.common.progress import Progress
from pipelines.common.tracking_config import TrackingConfig

CONFIG = TrackingConfig()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "dataset" / TRACKING_FOLDER / "000002"


def begin(root: Path, plan: Path) -> Progress:
    progress = Progress(CONFIG, root, "preprocess", plan)
    progress.connect()
    progress.metrics({"images": 1.0})
    return progress


def end_another_command(root: Path) -> None:
    send_leftovers(CONFIG, root, logs_of_dataset(root / "dataset"))


def test_the_log_of_a_preprocessing_that_is_running_stays(tmp_path: Path, plan: Path) -> None:
    """Its lines are all sent, and another command ends between them, and after its last one."""
    with file_lock(plan):
        progress = begin(tmp_path, plan)
        end_another_command(tmp_path)
        progress.metrics({"images": 2.0})
        assert progress.finish("FINISHED")
        end_another_command(tmp_path)
        assert plan.exists()
    end_another_command(tmp_path)
    assert not plan.parent.exists()
    assert progress.run_id is not None
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(progress.run_id)
    assert (run.info.status, run.data.metrics["images"]) == ("FINISHED", 2.0)


def test_the_log_of_a_preprocessing_that_was_killed_stays_for_the_next_run_of_its_plan(
    tmp_path: Path, plan: Path
) -> None:
    with file_lock(plan):
        progress = begin(tmp_path, plan)
        mlflow.end_run("RUNNING")  # As its process ends.
    end_another_command(tmp_path)
    assert plan.exists()
    with file_lock(plan):
        again = begin(tmp_path, plan)
        assert again.finish("KILLED")
    assert again.run_id == progress.run_id
    end_another_command(tmp_path)
    assert not plan.parent.exists()
