"""The process of `LocalWorker`: python -m pipelines.train.local_process DESCRIPTOR."""

import contextlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from glo_core.common.credentials import redact
from glo_core.common.errors import UserError, one_line
from glo_core.common.memory import volunteer_for_killing
from pipelines.common.logs import configure
from pipelines.train.arguments import WorkerArguments
from pipelines.train.local_worker import Kind, Message, Order
from pipelines.train.mailbox import Picture, Report

TRACEBACK_FILE = "traceback.txt"
"""In the run: of the last error that is not the user's"""


class Driver:
    """The driver of this process: its orders, and where it is told what happens."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        """Listen at `pipe` from now on; the process ends when the driver closes its end."""
        self.on_stop: Callable[[], None] = lambda: None
        """Called when the driver asks to stop"""
        self.stop_requested = False
        self._pipe, self._arguments, self._go = pipe, queue.SimpleQueue[WorkerArguments](), threading.Event()
        threading.Thread(target=self._listen, name="driver", daemon=True).start()

    def arguments(self) -> WorkerArguments:
        """What to train, once the driver says."""
        return self._arguments.get()

    def buildable(self) -> None:
        """Tell that decoder and loss can be built."""
        self.tell("buildable")

    def decoder_in_words(self, line: str) -> None:
        """Tell what the decoder is."""
        self.tell("decoder", line)

    def wait_for_go(self) -> None:
        """Wait until the run has its record."""
        self._go.wait()

    def put_report(self, report: Report) -> None:
        """Hand a report on."""
        self.tell("report", report)

    def put_picture(self, picture: Picture) -> None:
        """Hand a picture on."""
        self.tell("picture", picture)

    def tell(self, kind: Kind, value: Any = None) -> None:
        """Send a message."""
        self._pipe.send(Message(kind, value))

    def put_incident(self, line: str) -> None:
        """Tell of an error of the machine, which another attempt may not meet."""
        self.tell("incident", line)

    def put_failure(self, error: UserError) -> None:
        """Tell of the user's error."""
        self.tell("failure", error)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                order: Order = self._pipe.recv()
                match order.kind:
                    case "arguments":
                        self._arguments.put(order.value)
                    case "go":
                        self._go.set()
                    case "stop":
                        self.stop_requested = True
                        self.on_stop()
        os._exit(1)


def _train(driver: Driver) -> None:
    from pipelines.train import worker  # Brings PyTorch: while the driver has other things to do.

    arguments = driver.arguments()
    runtime = worker.runtime_here(arguments.gpu, driver.put_report, driver.put_picture)

    def stop() -> None:
        runtime.stop = True

    driver.on_stop = stop
    if driver.stop_requested:
        stop()
    try:
        worker.train_rank(arguments, runtime, driver, driver)
    except UserError:
        raise
    except Exception:
        with contextlib.suppress(OSError):
            (arguments.run / TRACEBACK_FILE).write_text(redact(traceback.format_exc()))
        raise


def main(descriptor: int) -> None:
    """Do what the driver at the socket `descriptor` orders, and end."""
    driver = Driver(Connection(descriptor))
    volunteer_for_killing()
    configure("train")
    try:
        _train(driver)
    except Exception as error:  # `train_rank` has told whose it is.
        driver.tell("error", one_line(error))
        sys.exit(1)
    driver.tell("ended")


if __name__ == "__main__":
    main(int(sys.argv[1]))
