"""Folders of image files -> dataset. Run it again for every new folder; ids stay."""

from pathlib import Path
from typing import Any

from glo_core.files import read_json
from jobs.cli import main
from pipelines.ingest import PreprocessJob, preprocess


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a dataset that is there already."""
    path = Path(values.get("dataset", "")) / "dataset.json"
    return dict(read_json(path)["config"]) if path.is_file() else {}


if __name__ == "__main__":
    main("preprocess", PreprocessJob, preprocess, recorded=recorded)
