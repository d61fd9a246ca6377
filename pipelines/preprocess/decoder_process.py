"""Decoding in a process of its own: a file that ends the process, or hangs in it, costs nothing but itself.

The parent sends the length of a file (8 bytes, little endian) and its bytes. The child answers with a line of JSON,
and with the pixels behind it. Nothing that comes from the child is unpickled.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from glo_core.common.records import parse_value
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import Decoded, decode
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.reading import foreign_data

SECONDS_PER_FILE = 300.0
"""Time in which any file is decoded, on a busy machine too"""
START_S = 120.0
TRIES = 2
"""A process may be killed for a reason that is not the file's: only a file that ends two in a row is rejected."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2)"""


class ChildProcess:
    """Answers requests with the functions of a module; a process that dies is replaced."""

    def __init__(self, module: str, greeting: bytes, seconds: float) -> None:
        """Start nothing yet.

        Args:
            module: which is run; it calls `serve`.
            greeting: its first request.
            seconds: after which an answer is given up.
        """
        self._module, self._greeting, self._seconds = module, greeting, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def request(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """The head and the body of the answer to `data`.

        Raises:
            RejectedImageError: that the answer tells, or if the process dies or takes too long.
            OSError: if no process can be started.
        """
        for _ in range(TRIES):
            process = self._process or self._start()
            with _time_limit(process, self._seconds) as expired:
                answer = _ask(process, data)
            if answer is not None:
                head, body = answer
                if "reason" in head:
                    raise RejectedImageError(head["reason"], head["detail"])
                return head, body
            death = self._end()
            if expired.is_set():
                death = f"no result after {self._seconds:g} s"
                break
        raise RejectedImageError("kills its decoder", death)

    def _start(self) -> subprocess.Popen[bytes]:
        # A worker of Ray finds this package by paths that the environment does not name.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with _time_limit(process, START_S):
            ready = _ask(process, self._greeting)
        if ready is None:
            raise OSError(f"a process that decodes images does not start ({self._end()})")
        return process

    def _end(self) -> str:
        """Kill the process; returns how it had died, if it had."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # Its pipe is closed a moment before it is dead.
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class DecoderProcess(ChildProcess):
    """`decode` for one policy."""

    def __init__(self, config: ResolvedDatasetConfig, seconds_per_file: float = SECONDS_PER_FILE) -> None:
        """Start nothing yet.

        Args:
            seconds_per_file: after which a file is rejected.
        """
        greeting = json.dumps(dataclasses.asdict(config)).encode()
        super().__init__("pipelines.preprocess.decoder_process", greeting, seconds_per_file)
        self._config = config

    def decode(self, data: bytes) -> Decoded:
        """As `glo_core.dataset_format.image_decoding.decode`.

        Raises:
            RejectedImageError: as of `decode`, or if the process dies or takes too long.
            OSError: if no process can be started.
        """
        head, body = self.request(data)
        side = self._config.resolution
        pixels = np.frombuffer(body, np.uint8).reshape(side, side, self._config.channels)
        return Decoded(pixels, head["width"], head["height"])


@contextlib.contextmanager
def _time_limit(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill `process` if the block lasts longer than `seconds`; the event tells that it did."""
    expired = threading.Event()

    def end() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def _ask(process: subprocess.Popen[bytes], data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Send `data`; the head and the body of the answer, or None if the process has died."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(len(data).to_bytes(8, "little"))
        process.stdin.write(data)
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    body = process.stdout.read(head["bytes"])
    return (head, body) if len(body) == head["bytes"] else None


# ---------------------------------------------------------------- the child


def serve(begin: Callable[[bytes], Callable[[bytes], tuple[dict[str, Any], bytes]]]) -> None:
    """Answer until the parent closes its end.

    Args:
        begin: of the greeting makes a function that answers a request.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Libraries may print.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # Die with the parent, also in the midst of a file.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = begin(_request(requests) or b"null")
    _answer(answers, {})
    while (data := _request(requests)) is not None:
        try:
            with foreign_data("broken"):
                head, body = answer(data)
        except RejectedImageError as error:
            head, body = {"reason": error.reason, "detail": error.detail}, b""
        _answer(answers, head, body)


def _decoder(greeting: bytes) -> Callable[[bytes], tuple[dict[str, Any], bytes]]:
    config = parse_value(json.loads(greeting), ResolvedDatasetConfig)

    def answer(data: bytes) -> tuple[dict[str, Any], bytes]:
        decoded = decode(data, config)
        return {"width": decoded.width, "height": decoded.height}, decoded.pixels.tobytes()

    return answer


def _request(requests: Any) -> bytes | None:
    """The next file; None at the end."""
    length = requests.read(8)
    return requests.read(int.from_bytes(length, "little")) if length else None


def _answer(answers: Any, head: dict[str, Any], body: bytes = b"") -> None:
    answers.write(json.dumps(head | {"bytes": len(body)}).encode() + b"\n" + body)
    answers.flush()


if __name__ == "__main__":
    serve(_decoder)
