"""Preprocessing as a function call."""

from pathlib import Path
from typing import Any

from glo_core.common.location import Location
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess


def preprocess_small(dataset: Path | str, *inputs: Path | str, **settings: Any) -> dict[str, Any]:
    """Preprocess `inputs` into `dataset`; 16 px, gray and 4 code shards unless `settings` say otherwise."""
    job = {"resolution": 16, "channels": 1, "code_shards": 4} | settings
    return preprocess(PreprocessJob(input=tuple(map(Location, inputs)), dataset=Location(dataset), **job))
