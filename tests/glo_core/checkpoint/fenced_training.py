"""A training that stops itself as by `kill -STOP` at its first commit: `fenced_training.py RUN before|after`.

It stops before or after it has looked whether it is still the run's attempt.
"""

import os
import signal
import sys
from pathlib import Path

import glo_core as glo
from glo_core.checkpoint.attempt import Attempt
from glo_core.checkpoint.layout import MARK
from tests.distributed.train_ranks import CONFIG, images

_require_current = Attempt.require_current


def _stop_and_look(attempt: Attempt) -> None:
    commits = any(attempt.run.glob(f"checkpoints/*.{attempt.token}/{MARK}"))  # All that is left is the rename.
    if commits and sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGSTOP)
    _require_current(attempt)
    if commits and sys.argv[2] == "after":
        os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":
    Attempt.require_current = _stop_and_look  # type: ignore[assignment, method-assign]
    glo.train_phase(
        CONFIG, images(), glo.Phase(target=400), run=Path(sys.argv[1]), intervals=glo.Intervals(checkpoint=100)
    )
