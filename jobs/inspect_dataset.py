"""What a dataset is; whether it is whole; one of its images as a file."""

from jobs.cli import main
from pipelines.config import InspectJob


def run(job: InspectJob) -> None:
    """Run the job; the libraries that it needs are imported now, so that help and mistakes do not wait for them."""
    from pipelines.inspect_dataset import inspect_dataset

    inspect_dataset(job)


if __name__ == "__main__":
    main("inspect_dataset", InspectJob, run)
