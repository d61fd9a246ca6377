"""Folders of image files -> dataset. Run it again for every new folder; ids stay."""

import dataclasses
from typing import Any

from glo_core.common.location import Location
from glo_core.dataset_format.records import read_config
from jobs.cli import main
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a dataset that is there already."""
    if "dataset" not in values or not (Location(values["dataset"]) / "dataset.json").exists():
        return {}
    return dataclasses.asdict(read_config(Location(values["dataset"])))


if __name__ == "__main__":
    main("preprocess", PreprocessJob, preprocess, saved_config=saved_config)
