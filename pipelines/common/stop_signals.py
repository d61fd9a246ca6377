"""Ctrl-C, SIGTERM and SIGHUP: wishes to stop.

They come from a terminal, from `timeout`, from batch systems and from `ray job stop`, to one process or to its group.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_STATUS = 130
"""Exit status of a job that stopped on request"""
REPEAT_SECONDS = 2.0
"""A signal that comes sooner after the first is the same wish: `timeout` sends each to its child and to its group"""


@contextlib.contextmanager
def on_stop_signal(stop: Callable[[], None]) -> Iterator[None]:
    """For the length of the block, call `stop` at the first signal; a later one goes to the handlers from before.

    SIGHUP stays ignored where it is, as `nohup` promises. Outside the main thread, where Python sets no handlers,
    the block runs as if this were not here.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    first: float | None = None

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            stop()
        elif time.monotonic() - first >= REPEAT_SECONDS:
            restore()
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
