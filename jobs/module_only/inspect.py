"""What a dataset is; whether it is whole; one of its images as a file. Run as `python -m jobs.inspect`."""

from jobs.cli import main
from pipelines.inspection import InspectJob, inspect_dataset

if __name__ == "__main__":
    main("inspect", InspectJob, inspect_dataset)
