"""A wish to stop reaches a job by SIGINT, SIGTERM or SIGHUP, once or twice, by itself or with its group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.common.stop_signals import REPEAT_SECONDS, SIGNALS, STOPPED_STATUS
from tests.helpers.paths import ROOT

JOB = """
import pathlib, sys, time
from jobs.cli import main
from pipelines.config import InspectJob
def work(job):
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        {cleanup}
        print("clean", flush=True)
main("inspect_dataset", InspectJob, work, argv=["--dataset", "/"])
"""
LINE = "inspect_dataset: interrupted; run the same command again to resume\n"


def begin(*before: str, cleanup: str = "pass") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", JOB.format(cleanup=cleanup)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_group_ends_a_job_with_its_cleanup_and_one_line(number: signal.Signals) -> None:
    process = begin()
    os.killpg(process.pid, number)
    assert process.communicate(timeout=30) == ("clean\n", LINE)
    assert process.returncode == STOPPED_STATUS


def test_the_same_signal_twice_at_once_is_one_wish() -> None:
    process = begin(cleanup="time.sleep(0.5)")
    for _ in range(20):
        os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30) == ("clean\n", LINE)
    assert process.returncode == STOPPED_STATUS


def test_a_later_signal_ends_at_once() -> None:
    process = begin(cleanup=f"print('cleaning', flush=True); time.sleep({REPEAT_SECONDS + 1}); time.sleep(60)")
    process.terminate()
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(REPEAT_SECONDS + 0.5)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_timeout_stops_a_job_in_order(name: str) -> None:
    process = begin("timeout", "--preserve-status", f"--signal={name}", "5")
    assert process.communicate(timeout=30) == ("clean\n", LINE)
    assert process.returncode == STOPPED_STATUS


def test_nohup_holds(tmp_path: Path) -> None:
    process = begin("nohup")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(30) == STOPPED_STATUS
