"""Files that end or hang the process that decodes them: real processes, real signals.

A `sitecustomize` module on Python's path, which every Python process imports first, lets Pillow die of files that say
so, as a decoder with a bug does.
"""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset
from glo_core.common.location import Location
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import decode
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.preprocess.containers import list_members
from pipelines.preprocess.decoder_process import DecoderProcess
from pipelines.preprocess.reader_process import ReaderProcess
from tests.helpers.nested_table import deadly_table
from tests.helpers.paths import ROOT

BUGS = """
import os, pathlib, signal, time
import PIL.Image

in_task = "default_worker" in pathlib.Path("/proc/self/cmdline").read_text()

def open_with_bugs(file, *arguments, **options):
    data = file.getvalue() if hasattr(file, "getvalue") else b""
    if b"please SIGSEGV" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"please SIGKILL" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"please exit" in data:
        os._exit(3)
    while b"please hang" in data:
        time.sleep(1)
    return sound_open(file, *arguments, **options)

def pread_with_bugs(*arguments):
    data = sound_pread(*arguments)
    if in_task and b"please die while reading" in data:  # The listing reads a file's first bytes too.
        os.kill(os.getpid(), signal.SIGKILL)
    return data

sound_open, PIL.Image.open = PIL.Image.open, open_with_bugs
sound_pread, os.pread = os.pread, pread_with_bugs
"""


@pytest.fixture
def bugs(tmp_path: Path) -> Path:
    """A folder for Python's path."""
    folder = tmp_path / "bugs"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BUGS)
    return folder


def picture(seed: int, wish: str = "") -> bytes:
    """A GIF, whatever its name is: a PNG's text never reaches Pillow, a GIF's comment does."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(buffer, "GIF", comment=wish.encode())
    return buffer.getvalue()


def run_job(bugs: Path, images: Path, dataset: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.preprocess", "--input", str(images), "--dataset", str(dataset)]
    command += options
    environment = os.environ | {"PYTHONPATH": f"{bugs}{os.pathsep}{ROOT}"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)


@pytest.mark.slow
def test_a_file_that_kills_its_task_is_rejected_and_nothing_else(bugs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        (images / f"{number}.png").write_bytes(picture(number))
    wishes = ["SIGSEGV", "SIGKILL", "exit"]
    for number, wish in enumerate(wishes):
        (images / f"{wish}.png").write_bytes(picture(100 + number, f"please {wish}"))
    done = run_job(bugs, images, tmp_path / "d")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "a process or node died 1 time(s) while it decoded 23 files; they were decoded in another process"
        in done.stderr
    )
    table = pq.read_table(tmp_path / "d" / "manifest" / "000001-00000.parquet").to_pylist()
    rejected = {row["path"].decode(): (row["reason"], row["detail"]) for row in table if row["status"] == "rejected"}
    assert rejected == {
        "SIGSEGV.png": ("kills its decoder", "SIGSEGV"),
        "SIGKILL.png": ("kills its decoder", "SIGKILL"),
        "exit.png": ("kills its decoder", "exit code 3"),
    }
    assert all(row["content_hash"] for row in table)
    assert len(Dataset.open(tmp_path / "d").images().ids) == 20
    assert [path.name for path in (tmp_path / "d" / "blocks").iterdir()] == ["000001-00000.arrow"]


@pytest.mark.slow
def test_a_table_that_kills_its_reader_is_listed_and_rejected(bugs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(picture(number))
    (images / "deadly.parquet").write_bytes(deadly_table())
    members = pa.table({"image": [picture(10), picture(11, "please SIGKILL"), picture(12)]})
    pq.write_table(members, images / "members.parquet")
    done = run_job(bugs, images, tmp_path / "d")
    assert done.returncode == 0, done.stderr[-2000:]
    table = pq.read_table(tmp_path / "d" / "manifest" / "000001-00000.parquet").to_pylist()
    rejected = {(row["path"], row["member"]): row["reason"] for row in table if row["status"] == "rejected"}
    assert rejected == {(b"deadly.parquet", None): "kills its decoder", (b"members.parquet", b"1"): "kills its decoder"}
    assert len(Dataset.open(tmp_path / "d").images().ids) == 5


def test_members_are_read_beside_a_task_that_died(tmp_path: Path) -> None:
    place = Location(tmp_path / "x.parquet")
    names = [picture(seed) for seed in range(100)]
    pq.write_table(pa.table({"image": names}), tmp_path / "x.parquet")
    with ReaderProcess() as process:
        members = process.list_members(place)
        assert members == list_members(place)
        rows = list(range(99, -1, -3))
        contents = dict(process.read_members(place, rows, [-1] * len(rows)))
    assert contents == {index: names[row] for index, row in enumerate(rows)}


@pytest.mark.slow
def test_a_task_that_dies_whatever_is_done_ends_the_job_in_one_line(bugs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "good.png").write_bytes(picture(0))
    (images / "bad.png").write_bytes(picture(1, "please die while reading"))
    done = run_job(bugs, images, tmp_path / "d")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "the process that decodes block 0 of plan 1 was killed 4 times" in last
    # Without its bug, the same command goes on with the same plan.
    (bugs / "sitecustomize.py").write_text("")
    done = run_job(bugs, images, tmp_path / "d")
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(Dataset.open(tmp_path / "d").images().ids) == 2


@pytest.fixture
def policy() -> ResolvedDatasetConfig:
    return ResolvedDatasetConfig(resolution=16, channels=1)


def test_a_decoder_process_gives_what_decode_gives(policy: ResolvedDatasetConfig) -> None:
    def result(decoder: Any, data: bytes) -> Any:
        try:
            pixels, width, height = decoder(data)
        except RejectedImageError as error:
            return error.reason, error.detail
        return pixels.tobytes(), width, height

    files = [picture(seed) for seed in range(5)] + [picture(0)[:100], b"", b"no image", picture(6) + b"x" * 100_000]
    with DecoderProcess(policy) as process:
        assert [result(process.decode, data) for data in files] == [
            result(lambda data: decode(data, policy), data) for data in files
        ]


def test_a_file_that_hangs_is_rejected_after_a_time(
    bugs: Path, policy: ResolvedDatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(bugs)
    with DecoderProcess(policy, seconds_per_file=3) as process:
        first = process.decode(picture(0))
        with pytest.raises(RejectedImageError, match=r"kills its decoder: no result after 3 s"):
            process.decode(picture(1, "please hang"))
        with pytest.raises(RejectedImageError, match=r"kills its decoder: SIGKILL"):
            process.decode(picture(1, "please SIGKILL"))
        np.testing.assert_array_equal(process.decode(picture(0)).pixels, first.pixels)


def test_the_time_between_two_files_is_no_hang() -> None:
    script = """
import io, time
from PIL import Image
from glo_core.dataset_format.config import ResolvedDatasetConfig
from pipelines.preprocess import decode_task

decode_task.SECONDS_PER_FILE = 4
data = io.BytesIO()
Image.new("L", (16, 16)).save(data, "PNG")
with decode_task._decoder(ResolvedDatasetConfig(resolution=16, channels=1), in_process_of_its_own=False) as decode:
    decode(data.getvalue())
    time.sleep(6)
    decode(data.getvalue())
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.stdout == "alive\n", done.stderr[-2000:]
