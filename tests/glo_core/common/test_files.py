import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from glo_core.common.errors import UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.files import atomic_write, differences, write_bytes
from glo_core.common.records import Record, read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Seal(Record):
    format: ClassVar[str] = "seal"
    number: int


@dataclass(frozen=True, kw_only=True)
class NewerSeal(Seal):
    format_version: ClassVar[int] = 99


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_bytes(path, b'{"x": 1}')
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text())["x"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_names_are_flushed_to_the_disk_after_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls in their order, each passed on to the system."""
    calls: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(handle: int) -> None:
        calls.append(("flush", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def record_replace(self: Path, target: Path) -> Path:
        calls.append(("rename", Path(target)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    mark = tmp_path / "checkpoints" / "100" / "checkpoint.json"
    write_record(mark, Seal(number=1))
    temporary = calls[2][1]
    assert temporary.name.startswith(".checkpoint.json.tmp-")
    # The names of both new directories, the file's bytes, the rename, and the file's name.
    assert calls == [
        ("flush", tmp_path), ("flush", mark.parent.parent), ("flush", temporary),
        ("rename", mark), ("flush", mark.parent),
    ]  # fmt: skip


def test_a_directory_that_may_be_entered_and_not_read() -> None:
    code = (
        "import os, sys, pathlib; from glo_core.common.files import *\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "write_bytes(pathlib.Path(sys.argv[1]), b'x')"
    )
    with tempfile.TemporaryDirectory(prefix="glo", dir="/tmp") as folder:  # Where another user may go.
        place = Path(folder) / "drop"
        place.mkdir()
        place.chmod(0o733)
        place.parent.chmod(0o711)
        subprocess.run([sys.executable, "-c", code, str(place / "a")], check=True)
        assert (place / "a").read_bytes() == b"x"


def test_a_size_limit_of_the_system_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    # A real limit of the kernel, in a process of its own: files of at most 1,000 bytes.
    code = (
        "import resource, sys, pathlib; from glo_core.common.files import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_bytes(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    path = tmp_path / "big.bin"
    shown = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"{path}: file too large; free some space and run the same command again")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"format_ver', "[1]"])
def test_a_record_that_is_not_whole_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.json: "):
        read_record(path, Seal)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", NewerSeal(number=1))
    with pytest.raises(UserError, match="format_version=99 is newer than this program reads"):
        read_record(tmp_path / "a.json", Seal)


def test_differences_name_nested_keys() -> None:
    old, new = {"a": 1, "code": {"dim": 16, "start": "pca"}}, {"a": 1, "code": {"dim": 32, "start": "pca"}, "b": 2}
    assert differences(old, new) == ["b: None -> 2", "code.dim: 16 -> 32"]


def test_a_file_is_locked_while_its_process_lives_and_no_longer(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from glo_core.common.file_lock import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on "), file_lock(tmp_path):
            pass
    finally:
        os.kill(holder.pid, 9)
        holder.wait()
    deadline = time.monotonic() + 5
    while True:
        try:
            with file_lock(tmp_path):
                return
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
