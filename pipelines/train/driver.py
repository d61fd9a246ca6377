"""The driver's side of a training: reports go to the progress log, MLflow and a progress bar; stops, to the ranks."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from glo_core.common.errors import UserError, one_line
from glo_core.common.files import write_bytes
from pipelines.common.progress_lines import Line
from pipelines.common.progress_log import ProgressLog, keep_sending
from pipelines.common.stage import Stage
from pipelines.common.stop_signals import on_stop_signal
from pipelines.train.mailbox import DriversMailbox, Picture

log = logging.getLogger("glo.train")


class Watch(Protocol):
    """What knows whether there are ranks."""

    started: bool
    """Whether a rank runs now"""


@contextmanager
def stop_on_signals(mailbox: DriversMailbox, watch: Watch) -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP a request to stop, which the ranks agree on; a second one ends at once.

    Args:
        mailbox: passes the request on.
        watch: tells whether there are ranks; where there are none, the first signal ends at once too.

    Raises:
        KeyboardInterrupt: at a signal while no worker runs.
    """

    def stop() -> None:
        if not watch.started:
            raise KeyboardInterrupt
        log.info("stopping with a checkpoint; a second signal ends at once, without one")
        mailbox.request_stop()

    with on_stop_signal(stop):
        yield


@contextmanager
def drain_reports(mailbox: DriversMailbox, stage: Stage[Any], target: int) -> Iterator[None]:
    """Until the block ends, move reports from the mailbox to the progress log, a progress bar and MLflow.

    One thread drains the mailbox every second, another sends the progress log to MLflow, so that reports reach the
    disk while MLflow does not answer.

    Args:
        mailbox: has the reports.
        target: images seen at the end of the progress bar.
    """
    block_ended, drained = threading.Event(), threading.Event()
    progress_log = stage.progress.log

    def drain() -> None:
        try:
            with tqdm(total=target, unit="img", desc="train", mininterval=1, unit_scale=True) as bar:
                last, warned = False, False
                while not last:
                    last = block_ended.wait(1.0)
                    try:
                        _drain_once(mailbox, progress_log, bar)
                    except Exception as error:  # Whatever mailbox, disk or terminal raises.
                        if not warned:
                            log.warning("reports are late (%s); training goes on", one_line(error))
                        warned = True
        finally:
            drained.set()

    def send() -> None:
        failure = keep_sending(stage.progress.send, drained)
        if failure:
            log.warning("%s; progress.jsonl has what it missed", failure)

    threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (drain, send)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        block_ended.set()
        for thread in threads:
            thread.join(timeout=60)


def _drain_once(mailbox: DriversMailbox, progress_log: ProgressLog, bar: Any) -> None:
    for incident in mailbox.take_incidents():
        log.warning("%s; training goes on from the last checkpoint if attempts are left", incident)
    reports = mailbox.take_reports()
    progress_log.add(
        [{"time_ms": report.time_ms, "images_seen": report.images_seen, **report.metrics} for report in reports]
    )
    for picture in mailbox.take_pictures():
        with contextlib.suppress(UserError, OSError):  # A full disk costs the picture, not the reports.
            progress_log.add([_write_picture(picture, progress_log.directory)])
    for report in reports:
        for name, share in report.metrics.items():
            if name.endswith("_progress"):  # Of work that all ranks do in step, beside the steps of training.
                bar.set_description(f"{name.removesuffix('_progress')} {share:.0%}")
        if "loss" in report.metrics:
            bar.set_description("train", refresh=False)
            loss, psnr = report.metrics["loss"], report.metrics["train_psnr"]
            bar.set_postfix(loss=f"{loss:.4f}", psnr=f"{psnr:.2f}", refresh=False)
            bar.update(report.images_seen - bar.n)


def _write_picture(picture: Picture, run: Path) -> Line:
    """Write `<run>/grids/<images seen>/<name>.png`; returns the line of the progress log that names it."""
    path = Path("grids") / str(picture.images_seen) / f"{picture.name}.png"
    write_bytes(run / path, picture.png)
    return {"time_ms": int(time.time() * 1000), "images_seen": picture.images_seen, "picture": str(path)}
