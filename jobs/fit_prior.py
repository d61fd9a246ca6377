"""Codes of a run -> Gaussians to sample new codes from."""

from jobs.cli import main
from pipelines.fit_prior import FitPriorJob, fit_prior

if __name__ == "__main__":
    main("fit_prior", FitPriorJob, fit_prior)
