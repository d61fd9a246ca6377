"""A limit of time that ends this process, whatever holds it up, and costs a file two system calls."""

import contextlib
import faulthandler
import signal
from collections.abc import Iterator

STDERR = 2


class TimeLimit:
    """Ends this process if a block under it takes too long; it may be entered again and again, not within itself.

    The kernel's timer does it. A thread that watches, as that of `faulthandler.dump_traceback_later`, starts and ends
    for each block: 0.15 ms, more than a small image takes to decode.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[TimeLimit]:
    """A `TimeLimit`, for the main thread; the process's own timer and handler of SIGALRM are put back at the end.

    When the time is over, every thread's traceback goes to standard error, and the signal ends the process.
    """
    handler, timer = signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.register(signal.SIGALRM, file=STDERR, chain=True)  # Then the default: the process ends.
    try:
        yield TimeLimit(seconds)
    finally:
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)
