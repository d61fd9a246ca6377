"""Tests of the limit that ends a process: in processes of their own."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

HANGS = {"python": "while True: pass", "library": "import ctypes; ctypes.CDLL(None).pause()"}
"""In Python, and in a call that keeps the interpreter's lock, or gives it back and never returns"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    head = "import signal, time\nfrom pipelines.preprocess.time_limit import time_limit\n"
    return subprocess.run([sys.executable, "-c", head + script], capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)
def test_a_block_that_never_ends_ends_the_process_and_tells_where(hang: str) -> None:
    done = run(f"with time_limit(0.5) as limit:\n  with limit:\n    {hang}\n")
    assert done.returncode == -signal.SIGALRM
    assert 'File "<string>", line 5' in done.stderr


def test_time_outside_the_block_does_not_count() -> None:
    done = run("""
with time_limit(0.5) as limit:
  for _ in range(2):
    with limit: time.sleep(0.2)
    time.sleep(0.7)
print("alive")
""")
    assert done.stdout == "alive\n", done.stderr


def test_the_process_gets_its_own_timer_and_handler_back() -> None:
    done = run("""
signal.signal(signal.SIGALRM, lambda *_: print("mine"))
signal.setitimer(signal.ITIMER_REAL, 1)
with time_limit(60) as limit:
  with limit: pass
signal.pause()
""")
    assert (done.stdout, done.returncode) == ("mine\n", 0), done.stderr
