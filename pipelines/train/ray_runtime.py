"""The rank of a Ray Train worker, and the mailbox between it and the driver, which an actor keeps."""

from typing import Any

import ray
import torch
from PIL import Image
from ray.train.v2._internal.execution.context import get_train_context

from glo_core.common.errors import UserError
from glo_core.common.runtime import Metrics, TorchDistributed
from pipelines.common.ray_data import unregister_pickled_objects
from pipelines.train.mailbox import Picture, Report

unregister_pickled_objects()  # `import ray.train` has imported Ray Data.


class ActorMailbox:
    """A `Mailbox` that an actor keeps, as driver and ranks see it; each method waits for the actor's answer."""

    def __init__(self, actor: Any) -> None:
        """Speak to `actor`, the handle of a `Mailbox`."""
        self.actor = actor

    def take_reports(self) -> list[Report]:
        """Reports since the last call, oldest first."""
        return ray.get(self.actor.take_reports.remote())

    def take_pictures(self) -> list[Picture]:
        """Pictures since the last call, oldest first."""
        return ray.get(self.actor.take_pictures.remote())

    def take_incidents(self) -> list[str]:
        """Lines since the last call, oldest first."""
        return ray.get(self.actor.take_incidents.remote())

    def put_incident(self, line: str) -> None:
        """Take what happened to a rank that Ray Train starts again."""
        ray.get(self.actor.put_incident.remote(line))

    def put_failure(self, error: UserError) -> None:
        """Take the user's error that ended a rank."""
        ray.get(self.actor.put_failure.remote(error))

    def failure(self) -> UserError | None:
        """The user's error that ended a rank, if one did."""
        return ray.get(self.actor.failure.remote())

    def request_stop(self) -> None:
        """Ask the ranks to stop, without waiting: a handler of signals calls this."""
        self.actor.request_stop.remote()


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
        ray.get(self.mailbox.put_report.remote(Report.now(images_seen, metrics)))

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        """Hand a picture of the series `name` on; called on rank 0."""
        self.mailbox.put_picture.remote(Picture.of(images_seen, name, picture))

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
