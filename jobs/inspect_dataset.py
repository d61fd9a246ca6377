"""What a dataset is; whether it is whole; one of its images as a file."""

from jobs.cli import main
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset

if __name__ == "__main__":
    main("inspect_dataset", InspectJob, inspect_dataset)
