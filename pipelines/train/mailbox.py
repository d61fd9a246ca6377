"""What passes between a training's driver and its ranks.

rank 0: metrics, pictures ---> Mailbox ---> driver
driver: Ctrl-C ---> Mailbox ---> rank 0 ---> every rank, at the same step
"""

import io
import queue
import time
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from PIL import Image

from glo_core.common.errors import UserError

T = TypeVar("T")


class Report(NamedTuple):
    """Metrics of one moment of a training."""

    time_ms: int
    """Milliseconds since 1970"""
    images_seen: int
    metrics: dict[str, float]

    @classmethod
    def now(cls, images_seen: int, metrics: dict[str, float]) -> Self:
        """A report of this moment."""
        return cls(int(time.time() * 1000), images_seen, metrics)


class Picture(NamedTuple):
    """A grid of images that a training shows while it goes on."""

    images_seen: int
    name: str
    """Of the series"""
    png: bytes
    """The file"""

    @classmethod
    def of(cls, images_seen: int, name: str, picture: Image.Image) -> Self:
        """`picture` as a PNG file."""
        file = io.BytesIO()
        picture.save(file, "PNG")
        return cls(images_seen, name, file.getvalue())


class Complaints(Protocol):
    """Where a rank tells of its errors."""

    def put_incident(self, line: str) -> Any:
        """Take what happened to a rank that is started again."""

    def put_failure(self, error: UserError) -> Any:
        """Take the user's error that ended a rank."""


class DriversMailbox(Protocol):
    """A mailbox as the driver sees it."""

    def take_reports(self) -> list[Report]:
        """Reports since the last call, oldest first."""

    def take_pictures(self) -> list[Picture]:
        """Pictures since the last call, oldest first."""

    def take_incidents(self) -> list[str]:
        """Lines since the last call, oldest first."""

    def request_stop(self) -> None:
        """Ask the ranks to stop."""


class Mailbox:
    """Reports and failures of the ranks one way, the request to stop the other; threads may share it."""

    def __init__(self) -> None:
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._pictures: queue.SimpleQueue[Picture] = queue.SimpleQueue()
        self._incidents: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._stop = False
        self._failure: UserError | None = None

    def put_report(self, report: Report) -> None:
        """Take a report of rank 0."""
        self._reports.put(report)

    def take_reports(self) -> list[Report]:
        """Reports since the last call, oldest first."""
        return _taken(self._reports)

    def put_picture(self, picture: Picture) -> None:
        """Take a picture of rank 0."""
        self._pictures.put(picture)

    def take_pictures(self) -> list[Picture]:
        """Pictures since the last call, oldest first."""
        return _taken(self._pictures)

    def request_stop(self) -> None:
        """Ask the ranks to stop."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether somebody asked to end with a checkpoint."""
        return self._stop

    def put_incident(self, line: str) -> None:
        """Take what happened to a rank that is started again."""
        self._incidents.put(line)

    def take_incidents(self) -> list[str]:
        """Lines since the last call, oldest first."""
        return _taken(self._incidents)

    def put_failure(self, error: UserError) -> None:
        """Take the user's error that ended a rank."""
        self._failure = error

    def failure(self) -> UserError | None:
        """The user's error that ended a rank, if one did."""
        return self._failure


def _taken(items: "queue.SimpleQueue[T]") -> list[T]:
    """All that is in the queue now."""
    return [items.get() for _ in range(items.qsize())]  # One thread takes.
