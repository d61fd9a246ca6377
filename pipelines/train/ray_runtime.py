"""What passes between a training's driver and its ranks, by an actor between them.

rank 0 --metrics--> Mailbox (an actor) --> driver
driver: Ctrl-C --> Mailbox --> rank 0 --> every rank, at the same step
"""

import io
import time
from typing import Any

import ray
import ray.train
import torch
from PIL import Image

from glo_core.common.runtime import Metrics, TorchDistributed

Report = tuple[int, int, Metrics]
"""Milliseconds since 1970, images seen, metrics."""


Picture = tuple[int, str, bytes]
"""Images seen, name of the series, a PNG file"""


class Mailbox:
    """An actor between the driver and the ranks: metrics one way, the wish to stop the other."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.pictures: list[Picture] = []
        self.stop = False
        self.failed = ""

    def put(self, report: Report) -> None:
        self.reports.append(report)

    def take(self) -> list[Report]:
        taken, self.reports = self.reports, []
        return taken

    def put_picture(self, picture: Picture) -> None:
        self.pictures.append(picture)

    def take_pictures(self) -> list[Picture]:
        taken, self.pictures = self.pictures, []
        return taken

    def request_stop(self) -> None:
        self.stop = True

    def stop_requested(self) -> bool:
        return self.stop

    def fail(self, reason: str) -> None:
        self.failed = reason

    def failure(self) -> str:
        """The user's mistake, or the limit, that ended a rank; "" if there is none."""
        return self.failed


class RayRuntime(TorchDistributed):
    """A rank of Ray Train, in touch with the driver's mailbox."""

    def __init__(self, device: torch.device, mailbox: Any) -> None:
        super().__init__(device)
        self.mailbox = mailbox
        self.shows_pictures = True
        self._answer: Any = None

    def report(self, images_seen: int, metrics: Metrics) -> None:
        ray.get(self.mailbox.put.remote((int(time.time() * 1000), images_seen, metrics)))

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        file = io.BytesIO()
        picture.save(file, "PNG")
        self.mailbox.put_picture.remote((images_seen, name, file.getvalue()))

    def stop_requested(self) -> bool:
        # Rank 0 asks, and training does not wait for the answer: it is read when it has come.
        if self.rank == 0 and not self.stop:
            if self._answer is None:
                self._answer = self.mailbox.stop_requested.remote()
            elif ray.wait([self._answer], timeout=0)[0]:
                self.stop, self._answer = ray.get(self._answer), None
        return self.stop

    def preempted(self) -> bool:
        return ray.train.get_preemption_info() is not None
