"""Dataset -> codes and decoder. The same command again resumes where training stopped."""

from typing import Any

from glo_core.common.errors import CheckpointError
from glo_core.training.phases import saved_settings
from jobs.cli import main
from pipelines.common.records import read_run_record
from pipelines.train.config import TrainJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the run, if it is there already; what it names to import, the command must name again."""
    record = read_run_record(values["run"]) if "run" in values else None
    if record is None or record.stage != "train":
        return {}
    if objects := record.identity.get("objects"):
        raise CheckpointError(
            f"{values['run']}: was trained by glo.train with objects of its own ({', '.join(objects)}); go on there"
        )
    return {**saved_settings(values["run"], record), "warm_start": record.paths.get("warm_start")}


def run(job: TrainJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    from glo_core.dataset_format.snapshots import read_dataset

    read_dataset(job.dataset)
    from pipelines.train.local_worker import early_worker

    with early_worker(job) as worker:
        from pipelines.train.job import run_training

        run_training(job, worker)


if __name__ == "__main__":
    main("train", TrainJob, run, saved_config=saved_config)
