"""What MLflow missed is stored and sent later: a store that goes away and comes back."""

import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from glo_core import UserError
from glo_core.common.errors import CheckpointError
from pipelines.common.tracking import Tracker
from pipelines.train.progress_log import ProgressLog, keep_sending


class Store:
    """Stands for MLflow: receives everything, or nothing while it is away."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.away = False
        self.refused = threading.Event()

    def history(self, reports: list[Any]) -> None:
        if self.away and reports:
            self.refused.set()
            raise UserError("MLflow: nobody there")
        self.received += [seen for _, seen, _ in reports]

    def image(self, path: Path, images_seen: int) -> None:
        self.received.append(path.name)


def lines(run: Path) -> list[int]:
    """Images seen of each line of `progress.jsonl`, as another program reads it."""
    head, *lines = map(json.loads, (run / "progress.jsonl").read_text().splitlines())
    assert head == {"format": "glo-progress", "format_version": 1}
    return [line["images_seen"] for line in lines]


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
    assert store.received == [1, 2, 3, 4, "a.png"]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path, store: Any) -> None:
    ProgressLog(tmp_path).add([line(1)])
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"images_se')
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(2)])
    progress_log.send(store)
    assert store.received == [1, 2]
    assert lines(tmp_path) == [1, 2]


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
    assert lines(tmp_path) == [1]
    progress_log.add([line(3)])
    assert lines(tmp_path) == [1, 2, 3]


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
    assert store.received == [1]
    store.away = True
    progress_log.add([line(2)])
    assert keep_sending(progress_log, store, ended) == "MLflow: nobody there"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ('{"time_ms": 1, "images_seen": 1, "loss": 0.5}', "is of a format from before the first release; train anew"),
        ('{"format": "glo-progress", "format_version": 2}', r"format_version=2 is newer than this program reads \(1\)"),
    ],
)
def test_a_log_of_another_format_is_refused_in_one_line(tmp_path: Path, head: str, reason: str) -> None:
    (tmp_path / "progress.jsonl").write_text(head + "\n")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/progress.jsonl: {reason}"):
        ProgressLog(tmp_path)
    assert (tmp_path / "progress.jsonl").read_text() == head + "\n"


def test_a_line_that_is_being_written_is_sent_once_it_is_whole(tmp_path: Path, store: Any) -> None:
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1)])
    data = json.dumps(line(2)) + "\n"
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write(data[:10])
        file.flush()
        progress_log.send(store)
        file.write(data[10:])
    progress_log.send(store)
    assert store.received == [1, 2]


def test_the_store_of_these_tests_has_the_methods_of_a_tracker() -> None:
    assert all(hasattr(Tracker, name) for name in ("history", "image"))
