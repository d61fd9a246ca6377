"""Codes of a run -> priors to sample new codes from."""

from typing import Any

from glo_core.checkpoint.layout import newest_checkpoint_directory
from glo_core.sampling.config import PriorConfig
from jobs.cli import main
from pipelines.config import FitPriorJob


def saved_config(values: dict[str, Any]) -> dict[str, Any]:
    """The config of this stage when it last ran on the newest checkpoint."""
    if "run" not in values:
        return {}
    from pipelines.common.stage import saved_config_of_newest  # Brings NumPy and Arrow.

    return saved_config_of_newest(values["run"], "prior", PriorConfig)


def run(job: FitPriorJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    newest_checkpoint_directory(job.run)
    from pipelines.fit_prior import fit_prior

    fit_prior(job)


if __name__ == "__main__":
    main("fit_prior", FitPriorJob, run, saved_config=saved_config)
