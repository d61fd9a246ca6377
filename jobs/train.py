"""Dataset -> codes and decoder. The same command again goes on where training stopped."""

from pathlib import Path
from typing import Any

from glo_core.files import read_json
from jobs.cli import main
from pipelines.phases import recipe_of_record
from pipelines.settings import TrainJob
from pipelines.training import run_training


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run that is there already."""
    path = Path(values.get("run", "")) / "run.json"
    if not path.is_file():
        return {}
    record = read_json(path)
    began_with = record.get("paths", {}).get("warm_start")
    return {**recipe_of_record(record.get("identity", {})), **({"warm_start": began_with} if began_with else {})}


if __name__ == "__main__":
    main("train", TrainJob, run_training, recorded=recorded)
