"""What passes between a training's driver and its ranks, through an actor.

rank 0: metrics, pictures ---> Mailbox ---> driver
driver: Ctrl-C ---> Mailbox ---> rank 0 ---> every rank, at the same step
"""

import io
import time
from typing import Any, NamedTuple

import ray
import torch
from PIL import Image
from ray.train.v2._internal.execution.context import get_train_context

from glo_core.common.errors import UserError
from glo_core.common.runtime import Metrics, TorchDistributed
from pipelines.common.ray_data import unregister_pickled_objects

unregister_pickled_objects()  # `import ray.train` has imported Ray Data.


class Report(NamedTuple):
    """Metrics of one moment of a training."""

    time_ms: int
    """Milliseconds since 1970"""
    images_seen: int
    metrics: Metrics


class Picture(NamedTuple):
    """A grid of images that a training shows while it goes on."""

    images_seen: int
    name: str
    """Of the series"""
    png: bytes
    """The file"""


class Mailbox:
    """An actor between driver and ranks: reports and failures one way, the request to stop the other."""

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._pictures: list[Picture] = []
        self._stop = False
        self._failure: UserError | None = None
        self._incidents: list[str] = []

    def put_report(self, report: Report) -> None:
        """Take a report of rank 0."""
        self._reports.append(report)

    def take_reports(self) -> list[Report]:
        """Reports since the last call, oldest first."""
        reports, self._reports = self._reports, []
        return reports

    def put_picture(self, picture: Picture) -> None:
        """Take a picture of rank 0."""
        self._pictures.append(picture)

    def take_pictures(self) -> list[Picture]:
        """Pictures since the last call, oldest first."""
        pictures, self._pictures = self._pictures, []
        return pictures

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether somebody asked to end with a checkpoint."""
        return self._stop

    def put_incident(self, line: str) -> None:
        """Take what happened to a rank that Ray Train starts again."""
        self._incidents.append(line)

    def take_incidents(self) -> list[str]:
        """Lines since the last call, oldest first."""
        incidents, self._incidents = self._incidents, []
        return incidents

    def put_failure(self, error: UserError) -> None:
        """Take the user's error that ended a rank."""
        self._failure = error

    def failure(self) -> UserError | None:
        """The user's error that ended a rank, if one did."""
        return self._failure


class RayRuntime(TorchDistributed):
    """A rank of Ray Train, which talks to the driver through a mailbox."""

    def __init__(self, device: torch.device, mailbox: Any) -> None:
        """Run on `device`; `mailbox` is the handle of a `Mailbox` actor."""
        super().__init__(device)
        self.mailbox = mailbox
        self.shows_pictures = True
        self._answer: Any = None
        """Of the actor to `stop_requested`, while it is on its way"""

    def report(self, images_seen: int, metrics: Metrics) -> None:
        """Hand metrics on; called on rank 0."""
        ray.get(self.mailbox.put_report.remote(Report(int(time.time() * 1000), images_seen, metrics)))

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand a picture of the series `name` on; called on rank 0."""
        file = io.BytesIO()
        picture.save(file, "PNG")
        self.mailbox.put_picture.remote(Picture(images_seen, name, file.getvalue()))

    def stop_requested(self) -> bool:
        """Whether somebody asked to end with a checkpoint."""
        # Rank 0 alone asks the actor. A step never waits for the answer, which is read at a later call.
        if self.rank == 0 and not self.stop:
            if self._answer is None:
                self._answer = self.mailbox.stop_requested.remote()
            elif ray.wait([self._answer], timeout=0)[0]:
                self.stop, self._answer = ray.get(self._answer), None
        return self.stop

    def preempted(self) -> bool:
        """Whether Ray has told this rank that a machine is about to be taken away; it tells every rank.

        `ray.train.get_preemption_info` waits for other ranks, and one that comes after Ray has let the others go would
        never return. Ray has no public name for what it has told this process.
        """
        return get_train_context().preemption_context.preemption_info is not None
