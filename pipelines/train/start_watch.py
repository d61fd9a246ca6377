"""Whether Ray Train's workers run, and a line where they do not start: Ray waits for room without a word, for ever."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.state import actors
from ray.exceptions import RayError, RpcError

from pipelines.common.ray_nodes import Node

log = logging.getLogger("glo.train")

PATIENCE_SECONDS = 30.0
"""Without a worker, before the first line"""
REPEAT_SECONDS = 300.0
"""Between two lines"""
_POLL_SECONDS = 1.0


class StartWatch:
    """Looks once a second at the workers of this job, in a thread of its own."""

    def __init__(self, workers: str, resources: dict[str, float]) -> None:
        """Watch for `workers` (a number or a range), each of `resources`."""
        self.workers, self.resources = workers, resources
        self.started = False
        """Whether a worker runs now"""
        self._absent_since = time.monotonic()
        self._next_line = PATIENCE_SECONDS

    def look(self) -> None:
        """See whether workers run; say what is waited for where none has run for long."""
        states = _worker_states()
        self.started = "ALIVE" in states
        if self.started:
            self._absent_since, self._next_line = time.monotonic(), PATIENCE_SECONDS
        elif time.monotonic() - self._absent_since >= self._next_line:
            self._next_line += REPEAT_SECONDS
            log.info("%s", self._line("PENDING_CREATION" in states))

    def _line(self, placed: bool) -> str:
        each = Node(self.resources["CPU"], int(self.resources.get("GPU", 0)))
        seconds = time.monotonic() - self._absent_since
        waiting = f"waiting for {self.workers} worker(s) of {each} each, for {seconds:.0f} s now"
        if placed:
            return f"{waiting}: they have their place, and their processes have not started"
        free, total = ray.available_resources(), ray.cluster_resources()
        amounts = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}(s)" for name in self.resources]
        return f"{waiting}; free are {' and '.join(amounts)}: another job may use the rest, or nodes are to come"


def _worker_states() -> set[str]:
    """States of the Ray Train workers of this job."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return {actor["State"] for actor in actors(job_id=job).values() if "RayTrainWorker" in actor["ActorClassName"]}


@contextmanager
def watch_start(workers: str, resources: dict[str, float]) -> Iterator[StartWatch]:
    """Watch, until the block ends, whether `workers`, each of `resources`, run."""
    watch, ended = StartWatch(workers, resources), threading.Event()

    def work() -> None:
        while not ended.wait(_POLL_SECONDS):
            with contextlib.suppress(RayError, RpcError):  # Others tell of a cluster that is away.
                watch.look()

    thread = threading.Thread(target=work, name="watch_start", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join(timeout=10)
