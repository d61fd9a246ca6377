"""What passes between a training's driver and its ranks: metrics one way, the wish to stop the other.

rank 0 --metrics--> Desk (an actor) --> driver: progress.jsonl, MLflow, progress bar
driver: Ctrl-C --> Desk --> rank 0 --> every rank, at the same step
"""

import contextlib
import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from PIL import Image
from tqdm import tqdm

from glo_core.files import write_bytes
from glo_core.runtime import Metrics, TorchDistributed
from pipelines.stage import Stage

Report = tuple[int, int, Metrics]
"""Milliseconds since 1970, images seen, metrics."""


Picture = tuple[int, str, bytes]
"""Images seen, name of the series, a PNG file"""


class Desk:
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
    """A rank of Ray Train, in touch with the driver's desk."""

    def __init__(self, device: torch.device, desk: Any) -> None:
        super().__init__(device)
        self.desk = desk
        self.shows_pictures = True
        self._answer: Any = None

    def report(self, images_seen: int, metrics: Metrics) -> None:
        ray.get(self.desk.put.remote((int(time.time() * 1000), images_seen, metrics)))

    def picture(self, images_seen: int, name: str, picture: Image.Image) -> None:
        file = io.BytesIO()
        picture.save(file, "PNG")
        self.desk.put_picture.remote((images_seen, name, file.getvalue()))

    def stop_requested(self) -> bool:
        # Rank 0 asks, and training does not wait for the answer: it is read when it has come.
        if self.rank == 0 and not self.stop:
            if self._answer is None:
                self._answer = self.desk.stop_requested.remote()
            elif ray.wait([self._answer], timeout=0)[0]:
                self.stop, self._answer = ray.get(self._answer), None
        return self.stop


@contextmanager
def stopping(desk: Any) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM (`ray job stop`) into a wish that the ranks agree on; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: Any) -> None:
        print("train: stopping with a checkpoint; once more ends at once, without one", flush=True)
        desk.request_stop.remote()
        for each in before:
            signal.signal(each, before[each])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def following(desk: Any, stage: Stage, target: int) -> Iterator[None]:
    """Drain the desk on a thread: to `progress.jsonl`, to MLflow, and to one progress bar for the whole job."""
    ended = threading.Event()

    def follow() -> None:
        unsent: list[Report] = []
        with (
            tqdm(total=target, unit="img", desc="train", mininterval=1, unit_scale=True) as bar,
            (stage.directory / "progress.jsonl").open("a") as log,
        ):
            while True:
                last = ended.wait(1.0)
                reports = ray.get(desk.take.remote())
                _show(reports, bar, log)
                for picture in ray.get(desk.take_pictures.remote()):
                    _keep(picture, stage)
                unsent = _send([*unsent, *reports], stage, bar, last)
                if last:
                    return

    follower = threading.Thread(target=follow, name="follow-training", daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(timeout=60)


def _show(reports: list[Report], bar: Any, log: Any) -> None:
    for _, images_seen, metrics in reports:
        log.write(json.dumps({"images_seen": images_seen, **metrics}) + "\n")
        if "loss" in metrics:
            bar.set_postfix(loss=f"{metrics['loss']:.4f}", psnr=f"{metrics['train_psnr']:.2f}", refresh=False)
            bar.update(images_seen - bar.n)
    log.flush()


def _keep(picture: Picture, stage: Stage) -> None:
    """Put a picture below the run's grids and into MLflow; the file is there whether or not MLflow answers."""
    images_seen, name, png = picture
    path = stage.directory / "grids" / str(images_seen) / f"{name}.png"
    write_bytes(path, png)
    with contextlib.suppress(Exception):  # Training must not die of its tracker.
        stage.tracker.image(path, images_seen)


def _send(reports: list[Report], stage: Stage, bar: Any, last: bool) -> list[Report]:
    """Send reports to MLflow; those that could not be sent come back, to be sent with the next ones."""
    try:
        stage.tracker.history(reports)
    except Exception as error:  # Whatever MLflow's store raises: training must not die of its tracker.
        if last:
            bar.write(f"train: {len(reports)} reports could not be sent to MLflow ({error}); progress.jsonl has them")
        return reports
    return []
