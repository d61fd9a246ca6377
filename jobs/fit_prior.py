"""Codes of a run -> Gaussians to sample new codes from."""

from typing import Any

from jobs.cli import main
from pipelines.common.stage import saved_config_of_newest
from pipelines.config import FitPriorJob
from pipelines.fit_prior import fit_prior


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return saved_config_of_newest(values.get("run", ""), "prior")


if __name__ == "__main__":
    main("fit_prior", FitPriorJob, fit_prior, saved_config=saved_config)
