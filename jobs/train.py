"""Dataset -> codes and decoder. The same command again resumes where training stopped."""

from typing import Any

from glo_core.common.files import read_json
from jobs.cli import main
from pipelines.train.config import TrainJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the run, if it is there already."""
    record = values["run"] / "run.json" if "run" in values else None
    if record is None or not record.is_file():
        return {}
    saved = read_json(record)
    return {**saved["identity"], "warm_start": saved["paths"].get("warm_start")}


def run(job: TrainJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    from pipelines.train.job import run_training

    run_training(job)


if __name__ == "__main__":
    main("train", TrainJob, run, saved_config=saved_config)
