"""The driver's side of a training, with a mailbox in this process."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.common.progress_log import ProgressLog
from pipelines.train.driver import drain_reports
from pipelines.train.mailbox import Mailbox, Report


def test_reports_go_on_after_one_drain_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The mailbox cannot be asked once, and once the log cannot be opened."""
    log, path = ProgressLog(tmp_path), tmp_path / "progress.jsonl"
    drains = 0
    done = threading.Event()

    def take_incidents() -> list[str]:
        nonlocal drains
        drains += 1
        if drains == 1:
            raise RuntimeError("nobody there")
        if drains == 2:
            path.rename(tmp_path / "away")
            path.mkdir()
        if drains == 3:
            path.rmdir()
            (tmp_path / "away").rename(path)
        if drains == 4:
            done.set()
        return []

    def take_reports() -> list[Report]:
        return [Report(1, drains, {"loss": 1.0, "train_psnr": 1.0})]

    mailbox = Mailbox()
    monkeypatch.setattr(mailbox, "take_incidents", take_incidents)
    monkeypatch.setattr(mailbox, "take_reports", take_reports)
    stage: Any = SimpleNamespace(progress=SimpleNamespace(log=log, send=lambda: None))
    with drain_reports(mailbox, stage, 10):
        assert done.wait(60)
    lines = path.read_text().splitlines()[1:]
    assert [f'"images_seen": {number}' in line for number, line in enumerate(lines, 2)] == [True] * (drains - 1)
    assert "reports are late (RuntimeError: nobody there); training goes on" in caplog.text
