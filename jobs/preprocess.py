"""Folders of image files -> dataset. Run it again for every new folder; ids stay."""

import dataclasses
from typing import Any

from glo_core.blocks import read_config
from glo_core.location import Location
from jobs.cli import main
from pipelines.ingest import PreprocessJob, preprocess


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a dataset that is there already."""
    if "dataset" not in values or not (Location(values["dataset"]) / "dataset.json").exists():
        return {}
    return dataclasses.asdict(read_config(Location(values["dataset"])))


if __name__ == "__main__":
    main("preprocess", PreprocessJob, preprocess, recorded=recorded)
