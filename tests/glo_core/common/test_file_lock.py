"""The lock on a directory, also where its holder deletes the directory."""

import fcntl
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest

from glo_core.common.errors import UserError
from glo_core.common.file_lock import LOCK_FILE, file_lock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with file_lock(tmp_path), pytest.raises(UserError, match=f"^{tmp_path}: in use by process "), file_lock(tmp_path):
        pass
    with file_lock(tmp_path):
        pass


def test_a_lock_whose_directory_was_deleted_before_it_was_taken_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file, its last holder deletes the directory."""
    directory, flock = tmp_path / "plan", fcntl.flock
    deleted: list[Path] = []

    def delete_first(lock: Any, operation: int) -> None:
        if not deleted:
            shutil.rmtree(directory)
            deleted.append(directory)
        flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", delete_first)
    with file_lock(directory):
        assert deleted and (directory / LOCK_FILE).read_text().startswith("process ")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply(is_in_use, (directory,))


def is_in_use(directory: Path) -> bool:
    try:
        with file_lock(directory):
            return False
    except UserError:
        return True
