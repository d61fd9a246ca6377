"""The driver's side of a training: reports to the progress log, MLflow and a progress bar; Ctrl-C to the ranks."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
from tqdm import tqdm

from glo_core.common.errors import UserError
from glo_core.common.files import write_bytes
from glo_core.common.runtime import Metrics
from pipelines.common.stage import Stage
from pipelines.train.progress_log import Line, ProgressLog, keep_sending
from pipelines.train.ray_runtime import Picture


@contextmanager
def stop_on_signals(mailbox: Any) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM (`ray job stop`) into a wish that the ranks agree on; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: Any) -> None:
        print("train: stopping with a checkpoint; once more ends at once, without one", flush=True)
        mailbox.request_stop.remote()
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
def drain_reports(mailbox: Any, stage: Stage, target: int) -> Iterator[None]:
    """Drain the mailbox on a thread, to the progress log and to one progress bar; another thread sends to MLflow."""
    ended, drained = threading.Event(), threading.Event()
    progress_log = ProgressLog(stage.directory)

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
                reports = ray.get(mailbox.take.remote())
                progress_log.add([{"time_ms": when, "images_seen": seen, **metrics} for when, seen, metrics in reports])
                for picture in ray.get(mailbox.take_pictures.remote()):
                    with contextlib.suppress(UserError, OSError):  # A full disk: reports go on without pictures.
                        progress_log.add([_kept(picture, stage.directory)])
                for _, seen, metrics in reports:
                    _show(bar, seen, metrics)

    def send() -> None:
        complaint = keep_sending(progress_log, stage.tracker, drained)
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
    """Put a picture below the run's grids; what the progress_log says of it."""
    images_seen, name, png = picture
    path = Path("grids") / str(images_seen) / f"{name}.png"
    write_bytes(run / path, png)
    return {"time_ms": int(time.time() * 1000), "images_seen": images_seen, "picture": str(path)}
