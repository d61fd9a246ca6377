"""What MLflow missed is kept and sent later: a store that goes away and comes back."""

import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from glo_core import UserError
from pipelines.common.tracking import Tracker
from pipelines.train.progress_log import ProgressLog, keep_sending


class Store:
    """Stands for MLflow: takes everything, or nothing while it is away."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.away = False
        self.refused = threading.Event()

    def history(self, reports: list[Any]) -> None:
        if self.away and reports:
            self.refused.set()
            raise UserError("MLflow: nobody there")
        self.taken += [seen for _, seen, _ in reports]

    def image(self, path: Path, images_seen: int) -> None:
        self.taken.append(path.name)


def line(images_seen: int) -> dict[str, Any]:
    return {"time_ms": 1, "images_seen": images_seen, "loss": 0.5}


@pytest.fixture
def store() -> Any:
    return Store()


def test_what_was_missed_is_sent_later_and_once(tmp_path: Path, store: Any) -> None:
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1)])
    progress_log.send(store)
    store.away = True
    progress_log.add([line(2), line(3)])
    with pytest.raises(UserError, match="nobody there"):
        progress_log.send(store)
    assert progress_log.behind
    store.away = False
    # The process ended; the next one begins with what is on disk.
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "a.png").touch()
    again = ProgressLog(tmp_path)
    again.add([{"time_ms": 1, "images_seen": 3, "picture": "grids/a.png"}, line(4)])
    again.send(store)
    assert not again.behind
    again.send(store)
    assert store.taken == [1, 2, 3, 4, "a.png"]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path, store: Any) -> None:
    ProgressLog(tmp_path).add([line(1)])
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"images_se')
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(2)])
    progress_log.send(store)
    assert store.taken == [1, 2]
    assert [json.loads(each)["images_seen"] for each in (tmp_path / "progress.jsonl").open()] == [1, 2]


def test_lines_that_a_full_disk_refuses_wait_for_room(tmp_path: Path) -> None:
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "progress.jsonl").stat().st_size + 10, limit[1]))
    try:
        progress_log.add([line(2)])  # Ten of its bytes have room.
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [json.loads(each)["images_seen"] for each in (tmp_path / "progress.jsonl").open()] == [1]
    progress_log.add([line(3)])
    assert [json.loads(each)["images_seen"] for each in (tmp_path / "progress.jsonl").open()] == [1, 2, 3]


def test_sending_goes_on_through_an_absence_and_the_last_word_is_the_last_try(tmp_path: Path, store: Any) -> None:
    progress_log, ended = ProgressLog(tmp_path), threading.Event()
    store.away = True
    progress_log.add([line(1)])
    sender = threading.Thread(target=keep_sending, args=(progress_log, store, ended, 0.01))
    sender.start()
    assert store.refused.wait(10)
    store.away = False
    ended.set()
    sender.join(10)
    assert store.taken == [1]
    store.away = True
    progress_log.add([line(2)])
    assert keep_sending(progress_log, store, ended) == "MLflow: nobody there"


def test_a_tracker_is_what_a_ledger_needs(tmp_path: Path) -> None:
    """The stand-in above has the methods of the real one."""
    assert all(hasattr(Tracker, name) for name in ("history", "image"))
