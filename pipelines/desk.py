"""What passes between a training's driver and its ranks: metrics one way, the wish to stop the other.

rank 0 --metrics--> Desk (an actor) --> driver: ledger (progress.jsonl, MLflow), progress bar
driver: Ctrl-C --> Desk --> rank 0 --> every rank, at the same step
"""

import contextlib
import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from PIL import Image
from tqdm import tqdm

from glo_core.files import UserError, write_bytes
from glo_core.runtime import Metrics, TorchDistributed
from pipelines.ledger import Ledger, Line, keep_sending
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

    def preempted(self) -> bool:
        return ray.train.get_preemption_info() is not None


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
    """Drain the desk on a thread, to the run's ledger and to one progress bar for the whole job; another one sends."""
    ended, drained = threading.Event(), threading.Event()
    ledger = Ledger(stage.directory)

    def follow() -> None:
        try:
            drain()
        finally:
            drained.set()

    def drain() -> None:
        with tqdm(total=target, unit="img", desc="train", mininterval=1, unit_scale=True) as bar:
            last = False
            while not last:
                last = ended.wait(1.0)
                reports = ray.get(desk.take.remote())
                ledger.add([{"time_ms": when, "images_seen": seen, **metrics} for when, seen, metrics in reports])
                for picture in ray.get(desk.take_pictures.remote()):
                    with contextlib.suppress(UserError, OSError):  # A full disk: reports go on without pictures.
                        ledger.add([_kept(picture, stage.directory)])
                for _, seen, metrics in reports:
                    _show(bar, seen, metrics)

    def send() -> None:
        complaint = keep_sending(ledger, stage.tracker, drained)
        if complaint:
            print(f"train: {complaint}; progress.jsonl has what it missed", flush=True)

    threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (follow, send)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=60)


def _show(bar: Any, images_seen: int, metrics: Metrics) -> None:
    if "loss" in metrics:
        bar.set_postfix(loss=f"{metrics['loss']:.4f}", psnr=f"{metrics['train_psnr']:.2f}", refresh=False)
        bar.update(images_seen - bar.n)


def _kept(picture: Picture, run: Path) -> Line:
    """Put a picture below the run's grids; what the ledger says of it."""
    images_seen, name, png = picture
    path = Path("grids") / str(images_seen) / f"{name}.png"
    write_bytes(run / path, png)
    return {"time_ms": int(time.time() * 1000), "images_seen": images_seen, "picture": str(path)}
