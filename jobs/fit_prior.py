"""Codes of a run -> Gaussians to sample new codes from."""

from typing import Any

from jobs.cli import main
from pipelines.fit_prior import FitPriorJob, fit_prior
from pipelines.stage import recorded_for_newest


def recorded(values: dict[str, Any]) -> dict[str, Any]:
    """What was asked for when the newest checkpoint had its turn."""
    return recorded_for_newest(values.get("run", ""), "prior")


if __name__ == "__main__":
    main("fit_prior", FitPriorJob, fit_prior, recorded=recorded)
