"""The one worker of a training that needs no Ray: a process beside the driver, which replaces it where it is lost.

driver: arguments, "go", "stop" ---> pipe ---> pipelines.train.local_process
pipelines.train.local_process: reports, pictures, errors ---> pipe ---> driver: Mailbox

The process leads a session of its own: a signal to the job's group is a wish to stop with a checkpoint, which the
driver passes on. It ends when its pipe does, and so never outlives the driver.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from glo_core.common.errors import UserError
from pipelines.common.records import DONE_FILE, TrainDone
from pipelines.common.stage import Stage
from pipelines.train.arguments import WorkerArguments
from pipelines.train.config import TrainJob
from pipelines.train.driver import drain_reports, stop_on_signals
from pipelines.train.mailbox import Mailbox
from pipelines.train.resources import trains_here

Kind = Literal["report", "picture", "incident", "failure", "error", "buildable", "decoder", "ended"]

log = logging.getLogger("glo.train")
_LAST_SECONDS = 60.0
"""In which the process frees what it has on disks"""


class Message(NamedTuple):
    """What the process tells the driver."""

    kind: Kind
    value: Any = None


class Order(NamedTuple):
    """What the driver tells the process."""

    kind: Literal["arguments", "go", "stop"]
    value: Any = None


class LocalWorker:
    """A process that imports PyTorch while the driver does other things, and then trains."""

    def __init__(self) -> None:
        """Start the process."""
        self.started = False
        """Whether it trains, so that a wish to stop is its own"""
        self._mailbox = _LocalMailbox(self)
        self._decoder_logged = False
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._end()

    @property
    def mailbox(self) -> Mailbox:
        """What the process tells, and what it is asked."""
        return self._mailbox

    def prepare(self, arguments: WorkerArguments) -> None:
        """Let the process do what writes nothing into the run: find the principal components of the images."""
        self._order(Order("arguments", arguments))

    def require_prepared(self) -> None:
        """Wait until the process knows that what it prepares can be trained.

        Raises:
            UserError: if decoder or loss cannot be built, or the process has ended.
        """
        reason = self._receive(until="buildable")
        failure = self._mailbox.failure()
        if failure is not None or reason is not None:
            raise failure or UserError(f"training failed: {reason}")

    def begin(self) -> None:
        """Let the process train what it has prepared: the run may be written to."""
        self._order(Order("go"))

    def train(self, arguments: WorkerArguments, max_failures: int) -> None:
        """Wait until it has trained to the end of the phase, or to a wish to stop; after `begin`.

        Raises:
            UserError: if training failed for a reason that the user can mend, or was lost more than `max_failures`
                times.
        """
        for attempts_left in range(max_failures, -1, -1):
            self.started = True
            if self._mailbox.stop_requested():
                self._order(Order("stop"))
            reason = self._receive()
            self.started = False
            failure = self._mailbox.failure()
            if failure is not None:
                raise failure
            if reason is None:
                return
            if not attempts_left:
                raise UserError(f"training failed: {reason}")
            self._start()
            self.prepare(arguments)
            self.begin()

    def ask_to_stop(self) -> None:
        """Tell the process that somebody wishes to stop."""
        self._order(Order("stop"))

    def _receive(self, until: Kind = "ended") -> str | None:
        """Pass on what the process tells, up to a message of the kind `until`; why it ended before that."""
        reason, mailbox = None, self._mailbox
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                message: Message = self._pipe.recv()
                if message.kind == until != "ended":
                    return None
                match message.kind:
                    case "report":
                        mailbox.put_report(message.value)
                    case "picture":
                        mailbox.put_picture(message.value)
                    case "failure":
                        mailbox.put_failure(message.value)
                    case "incident":
                        mailbox.put_incident(message.value)
                    case "decoder":
                        self._log_decoder(message.value)
                    case "error":
                        reason = message.value
                    case "ended":
                        self._end()
                        return None
        code = self._end()
        if reason is None:
            reason = f"the process that trains {_words(code)}"
            mailbox.put_incident(reason)
        return reason

    def _log_decoder(self, line: str) -> None:
        """Log what the decoder is, once for all attempts."""
        if not self._decoder_logged:
            log.info("%s", line)
        self._decoder_logged = True

    def _order(self, order: Order) -> None:
        with contextlib.suppress(ConnectionError):  # `train` tells of a process that is gone.
            self._pipe.send(order)

    def _start(self) -> None:
        self._pipe, other = Pipe()
        # The process finds modules where the driver does, and nowhere else (-P).
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipelines.train.local_process", str(other.fileno())],
                env=environment, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _end(self) -> int:
        """Wait for the process, which has said its last word; its exit code, or minus the signal that ended it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)
        self._process.kill()
        self._pipe.close()
        return self._process.wait()


@dataclass(frozen=True)
class WorkerHere:
    """One worker of the training, on this machine; see `Workers`."""

    worker: LocalWorker
    resources: dict[str, float]

    def prepare(self, arguments: WorkerArguments) -> None:
        """Let the worker find the principal components of the images, if training starts there."""
        self.worker.prepare(arguments)

    def require_prepared(self) -> None:
        """Wait for the worker's word on decoder and loss; see `Workers`."""
        self.worker.require_prepared()

    def begin(self) -> None:
        """Let the worker train."""
        self.worker.begin()

    def fit(self, job: TrainJob, stage: Stage[TrainDone], arguments: WorkerArguments) -> None:
        """Train; see `Workers`."""
        mailbox = self.worker.mailbox
        with stop_on_signals(mailbox, self.worker), drain_reports(mailbox, stage, arguments.phase.target):
            self.worker.train(arguments, job.max_failures)


@contextlib.contextmanager
def early_worker(job: TrainJob) -> Iterator[LocalWorker | None]:
    """A worker that is started before the driver imports PyTorch; None where the training will not need it."""
    if not trains_here(job) or (job.run / DONE_FILE).exists():
        yield None
        return
    with LocalWorker() as worker:
        yield worker


class _LocalMailbox(Mailbox):
    def __init__(self, worker: LocalWorker) -> None:
        super().__init__()
        self._worker = worker

    def request_stop(self) -> None:
        """Ask the worker to stop."""
        super().request_stop()
        self._worker.ask_to_stop()


def _words(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", which the system sends where memory is short" if -code == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{memory}"
