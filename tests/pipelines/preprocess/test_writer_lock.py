"""Writers of a dataset in a bucket: real processes that take its lease at the same moment."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from glo_core import UserError
from glo_core.common.location import Location
from pipelines.preprocess import writer_lock
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import plan_path
from pipelines.preprocess.writer_lock import exclusive_writer
from tests.helpers.paths import ROOT
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

WRITER = """
import sys, time
from pathlib import Path
from glo_core.common.errors import UserError
from glo_core.common.location import Location
from pipelines.preprocess import writer_lock
writer_lock.RENEWED_EVERY_S, writer_lock.EXPIRES_AFTER_S, writer_lock.SETTLES_AFTER_S = 1.0, 20.0, 0.05
dataset, inside = Location(sys.argv[1]), Path(sys.argv[2])
time.sleep(max(0, float(sys.argv[3]) - time.time()))
try:
    with writer_lock.exclusive_writer(dataset) as require_lease:
        inside.touch(exist_ok=False)
        time.sleep(0.5)
        require_lease()
        inside.unlink()
        print("wrote")
except UserError as error:
    assert "in use by" in str(error), error
    print("refused")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEWED_EVERY_S", 0.5), ("EXPIRES_AFTER_S", 2.0), ("SETTLES_AFTER_S", 0.1)):
        monkeypatch.setattr(writer_lock, name, seconds)


@pytest.mark.slow
def test_writers_that_start_at_once_are_never_two(bucket: str, tmp_path: Path) -> None:
    place = bucket.replace("FOLDER", "contended")
    start = time.time() + 8
    command = [sys.executable, "-c", WRITER, place, str(tmp_path / "inside"), str(start)]
    writers = [
        subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    outputs = [writer.communicate(timeout=150) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers), outputs  # `touch` fails where two are inside.
    assert [out.strip() for out, _ in outputs].count("wrote") >= 1
    assert not [name for name in Location(place).names() if name.startswith(".lock")]


def test_the_claim_of_a_writer_that_died_runs_out(bucket: str) -> None:
    dataset = Location(bucket.replace("FOLDER", "claimed"))
    (dataset / ".lock.0").put(b'{"holder": "process 1 on gone", "token": "0", "renewed": 0}')
    (dataset / ".lock.zz").put(b"")
    with exclusive_writer(dataset) as require_lease:
        require_lease()
        assert (dataset / ".lock").exists()
    assert [name for name in dataset.names() if name.startswith(".lock")] == []


@pytest.mark.usefixtures("session")
def test_a_writer_that_lost_its_lease_commits_neither_plan_nor_removal(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bucket.replace("FOLDER", "lost")
    dataset, tracking = Location(place), {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    write_images(tmp_path / "photos", 6, seed=0)
    preprocess_small(place, tmp_path / "photos", **tracking)
    write_images(tmp_path / "photos" / "later", 2, seed=1)
    other = b'{"holder": "process 7 on elsewhere", "token": "t", "renewed": 1}'
    monkeypatch.setattr(writer_lock, "RENEWED_EVERY_S", 100.0)
    listed = preprocess.__globals__["ids_to_retry"]

    def lose(*arguments: object, **options: object) -> object:
        (dataset / ".lock").put(other)
        return listed(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setitem(preprocess.__globals__, "ids_to_retry", lose)
        with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
            preprocess_small(place, tmp_path / "photos", **tracking)
    assert not plan_path(dataset, 2).exists()
    (dataset / ".lock").unlink()
    read = preprocess.__globals__["remove_images"]

    def lose_then_remove(*arguments: object) -> object:
        (dataset / ".lock").put(other)
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(preprocess.__globals__, "remove_images", lose_then_remove)
        with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
            preprocess_small(place, remove=("0",), **tracking)
    assert len((dataset / "snapshots").names()) == 1
    (dataset / ".lock").unlink()
    assert preprocess_small(place, tmp_path / "photos", **tracking)["train"] == 2
