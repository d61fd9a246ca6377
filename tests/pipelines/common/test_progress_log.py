"""What MLflow missed is stored and sent later: a store that goes away and comes back."""

import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glo_core import UserError
from glo_core.common.errors import CheckpointError
from pipelines.common.progress_log import ProgressLog, is_behind, keep_sending
from pipelines.common.tracking import Tracker


class Store:
    """Stands for MLflow: receives everything, refuses what it is told to, or nothing arrives while it is away."""

    run_id = "a"

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.away = False
        self.refuses: set[Any] = set()
        self.was_away = threading.Event()

    def _receive(self, *values: Any) -> None:
        if self.away and values:
            self.was_away.set()
            raise UserError("MLflow: nobody there")
        if self.refuses & set(values):
            raise OSError("permission denied")
        self.received += values

    def history(self, reports: list[Any]) -> None:
        self._receive(*(seen for _, seen, _ in reports))

    def image(self, path: Path, images_seen: int) -> None:
        self._receive(path.name)

    def finish(self, status: str) -> None:
        self._receive(status)

    def params(self, params: dict[str, Any]) -> None:
        self._receive(*params)

    def answers(self) -> bool:
        return not self.away


def lines(run: Path) -> list[int]:
    """Images seen of each line of `progress.jsonl`, as another program reads it."""
    head, *lines = map(json.loads, (run / "progress.jsonl").read_text().splitlines())
    assert head == {"format": "glo-progress", "format_version": 1}
    return [line["images_seen"] for line in lines]


def line(images_seen: int) -> dict[str, Any]:
    return {"time_ms": 1, "images_seen": images_seen, "loss": 0.5}


def picture(run: Path, name: str) -> dict[str, Any]:
    """The line of a picture that is there."""
    (run / "grids").mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(run / "grids" / f"{name}.png")
    return {"time_ms": 1, "images_seen": 3, "picture": f"grids/{name}.png"}


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
    again = ProgressLog(tmp_path)
    again.add([picture(tmp_path, "a"), line(4)])
    again.send(store)
    assert not again.behind
    again.send(store)
    assert store.received == [1, 2, 3, "a.png", 4]


def test_another_run_gets_every_line(tmp_path: Path, store: Any) -> None:
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1), line(2)])
    progress_log.send(store)
    store.run_id = "b"
    ProgressLog(tmp_path).send(store)
    assert store.received == [1, 2, 1, 2]


def test_what_is_refused_holds_up_nothing_and_is_sent_by_the_next_command(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Artifacts that cannot be written, and a line of metrics that the store does not take."""
    store.refuses = {"a.png", "b.png", 3}
    progress_log = ProgressLog(tmp_path)
    progress_log.add([picture(tmp_path, "a"), line(1), line(2), line(3), picture(tmp_path, "b"), line(4)])
    progress_log.send(store)
    assert store.received == [1, 2, 4]
    warning = "MLflow does not take grids/a.png (OSError: permission denied); the next command sends it again"
    assert warning in caplog.text
    progress_log.add([line(5)])
    progress_log.send(store)
    assert store.received == [1, 2, 4, 5]
    assert progress_log.behind
    # One that is refused again and again keeps no other one from being sent.
    store.refuses = {"a.png"}
    ProgressLog(tmp_path).send(store)
    ProgressLog(tmp_path).send(store)
    assert store.received == [1, 2, 4, 5, 3, "b.png"]
    store.refuses = set()
    last = ProgressLog(tmp_path)
    last.send(store)
    assert store.received[6:] == ["a.png"]
    assert not last.behind
    assert not is_behind(tmp_path)


BAD_LINES = ["{", "", "7", "null", "[1]", "\0\0\0", '"text"', "{}", '{"time_ms": 1}',
             '{"images_seen": "x", "time_ms": 1}',
             '{"time_ms": 1, "images_seen": 1, "loss": "high"}', '{"picture": 7}', '{"params": []}',
             '{"time_ms": 1e400, "images_seen": 1, "loss": 1}', "[" * 10_000]  # fmt: skip


def test_a_line_that_is_none_of_a_log_is_skipped_with_a_warning(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ProgressLog(tmp_path).add([line(1)])
    with (tmp_path / "progress.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n" + "".join(f"{bad}\n" for bad in BAD_LINES).encode())
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(2)])
    progress_log.send(store)
    assert store.received == [1, 2]
    assert not progress_log.behind
    assert caplog.text.count("is not one of a progress log; it is skipped") == len(BAD_LINES) + 1


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "grids/gone.png", "grids/damaged.png", "link.png"])
def test_a_picture_that_is_gone_damaged_or_outside_is_skipped_with_a_warning(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    run = tmp_path / "run"
    picture(tmp_path, "a")
    (tmp_path / "grids" / "a.png").rename(tmp_path / "secret.png")
    (run / "grids").mkdir(parents=True)
    (run / "grids" / "damaged.png").write_bytes(b"no picture")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    progress_log = ProgressLog(run)
    progress_log.add([{"time_ms": 1, "images_seen": 1, "picture": name}, picture(run, "b")])
    progress_log.send(store)
    assert store.received == ["b.png"]
    assert f"MLflow is not sent {name}" in caplog.text
    assert not progress_log.behind


def test_a_status_that_a_later_command_has_gone_on_from_is_not_sent(tmp_path: Path, store: Any) -> None:
    store.away = True
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1), {"time_ms": 1, "status": "FAILED"}])
    with pytest.raises(UserError, match="nobody there"):
        progress_log.send(store)
    store.away = False
    progress_log.add([{"time_ms": 2, "params": {"seed": 1}}, {"time_ms": 3, "status": "FINISHED"}])
    progress_log.send(store)
    assert store.received == [1, "seed", "FINISHED"]


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
    sender = threading.Thread(target=keep_sending, args=(lambda: progress_log.send(store), ended, 0.01))
    sender.start()
    assert store.was_away.wait(10)
    store.away = False
    ended.set()
    sender.join(10)
    assert store.received == [1]
    store.away = True
    progress_log.add([line(2)])
    assert keep_sending(lambda: progress_log.send(store), ended) == "MLflow: nobody there"


def test_a_log_of_a_newer_version_is_refused_in_one_line(tmp_path: Path) -> None:
    head = '{"format": "glo-progress", "format_version": 2}\n'
    (tmp_path / "progress.jsonl").write_text(head)
    reason = r"format_version=2 is newer than this program reads \(1\)"
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/progress.jsonl: {reason}"):
        ProgressLog(tmp_path)
    assert (tmp_path / "progress.jsonl").read_text() == head


BAD_HEADS = [b"\0" * 200, b'{"format": "glo-pro', b"garbage", b"7", b"[" * 10_000, b"{}", b"\xff",
             b'{"format": "glo-run", "format_version": 1}', b'{"format": "glo-progress", "format_version": "x"}',
             b'{"time_ms": 1, "images_seen": 1, "loss": 0.5}']  # fmt: skip


@pytest.mark.parametrize("head", BAD_HEADS)
def test_a_log_whose_first_line_is_damaged_is_moved_aside_and_a_new_one_begins(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    earlier = ProgressLog(tmp_path)
    earlier.add([line(number) for number in range(30)])
    earlier.send(store)
    lines_of_before = (tmp_path / "progress.jsonl").read_bytes().split(b"\n", 1)[1]
    for number in (1, 2):  # It happens twice.
        (tmp_path / "progress.jsonl").write_bytes(head + b"\n" + lines_of_before)
        ProgressLog(tmp_path).add([line(100 + number)])  # Its process is killed before it sends.
        aside = tmp_path / f"progress.jsonl.damaged-{number}"
        assert aside.read_bytes() == head + b"\n" + lines_of_before
        assert f"its first line is damaged; it is now {aside.name}" in caplog.text
        progress_log = ProgressLog(tmp_path)
        assert progress_log.run_id == "a"
        progress_log.add([line(200 + number) for _ in range(30)])
        progress_log.send(store)
        assert store.received[-31:] == [100 + number] + [200 + number] * 30


def test_a_disk_that_fails_for_a_moment_delays_lines_and_stops_nothing(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The log cannot be opened, and then: half a line is written, and cannot be taken back."""
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1)])
    path = tmp_path / "progress.jsonl"
    path.rename(tmp_path / "away")
    path.mkdir()
    progress_log.add([line(2)])
    assert caplog.text.count("the work goes on, and its reports wait for the disk") == 1
    path.rmdir()
    (tmp_path / "away").rename(path)
    with path.open("a") as file:
        file.write(json.dumps(line(2)) + '\n{"half')
    progress_log.add([line(3)])
    assert lines(tmp_path) == [1, 2, 3]
    progress_log.send(store)
    assert store.received == [1, 2, 3]


def test_a_refused_status_does_not_end_the_run_of_the_next_command(tmp_path: Path, store: Any) -> None:
    store.refuses = {"KILLED"}
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1), {"time_ms": 1, "status": "KILLED"}])
    progress_log.send(store)
    assert store.received == [1]
    store.refuses = set()
    later = ProgressLog(tmp_path)
    later.add([line(2)])
    later.send(store)
    assert store.received == [1, 2]
    assert not later.behind


def test_a_refused_status_is_sent_again_where_no_command_has_gone_on(tmp_path: Path, store: Any) -> None:
    store.refuses = {"FINISHED"}
    progress_log = ProgressLog(tmp_path)
    progress_log.add([line(1), {"time_ms": 1, "status": "FINISHED"}])
    progress_log.send(store)
    store.refuses = set()
    ProgressLog(tmp_path).send(store)
    assert store.received == [1, "FINISHED"]


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
    assert all(hasattr(Tracker, name) for name in vars(Store) if not name.startswith("_") and name != "run_id")
