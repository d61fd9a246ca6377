"""Dataset -> codes and decoder. The same command again goes on where training stopped."""

from pathlib import Path
from typing import Any

from glo_core.common.files import read_json
from jobs.cli import main
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run that is there already."""
    path = Path(values.get("run", "")) / "run.json"
    if not path.is_file():
        return {}
    record = read_json(path)
    began_with = record.get("paths", {}).get("warm_start")
    return {**record.get("identity", {}), **({"warm_start": began_with} if began_with else {})}


if __name__ == "__main__":
    main("train", TrainJob, run_training, saved_config=saved_config)
