"""What trains, as the driver sees it: one process beside the driver, or the workers of Ray Train."""

from collections.abc import Mapping
from typing import Protocol

from pipelines.common.records import TrainDone
from pipelines.common.stage import Stage
from pipelines.train.arguments import WorkerArguments
from pipelines.train.config import TrainJob


class Workers(Protocol):
    """The workers of one training."""

    @property
    def resources(self) -> Mapping[str, float]:
        """CPUs and GPUs of each worker."""
        ...

    def prepare(self, arguments: WorkerArguments) -> None:
        """Begin what writes nothing into the run, while the driver does other things."""
        ...

    def require_prepared(self) -> None:
        """Wait until what is prepared is known to be possible.

        Raises:
            ConfigError: if decoder or loss cannot be built.
        """
        ...

    def begin(self) -> None:
        """Let those that have prepared train: the run has its record."""
        ...

    def fit(self, job: TrainJob, stage: Stage[TrainDone], arguments: WorkerArguments) -> None:
        """Train to the end of the phase, or to a wish to stop; after `prepare` and `begin`.

        Raises:
            UserError: if training failed for a reason that the user can mend, or more often than the job allows.
        """
        ...
