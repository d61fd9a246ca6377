"""Folders of image files -> dataset. Run it again for every new folder; ids stay."""

import dataclasses
from typing import Any

from glo_core.common.location import Location
from glo_core.dataset_format.records import read_config
from jobs.cli import main
from pipelines.preprocess.config import PreprocessJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The config of the dataset, if it is there already."""
    dataset: Location | None = values.get("dataset")
    if dataset is None or not (dataset / "dataset.json").exists():
        return {}
    return dataclasses.asdict(read_config(dataset))


def run(job: PreprocessJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    from pipelines.preprocess.job import preprocess

    preprocess(job)


if __name__ == "__main__":
    main("preprocess", PreprocessJob, run, saved_config=saved_config)
