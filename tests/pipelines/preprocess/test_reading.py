"""Files that lie among images: of any size, date and kind; each costs a row, and none of them the others."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.digests import digest
from glo_core.common.location import Location
from glo_core.dataset_format.rejection import RejectedImageError
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.reading import LOADED_AT_ONCE, NotLoadedError, hash_file, read_file
from tests.helpers.paths import ROOT
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

MB, GB = 1 << 20, 1 << 30


def sparse(path: Path, beginning: bytes, size: int) -> Path:
    """A file of `size` bytes, most of which are a hole: no disk is written."""
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)
    return path


def rows(dataset: Path) -> dict[str, dict[str, Any]]:
    table = pa.concat_tables([pq.read_table(p) for p in sorted((dataset / "manifest").iterdir())])
    return {os.fsdecode(row["path"]): row for row in table.to_pylist()}


@pytest.mark.usefixtures("session")
def test_films_and_other_files_are_told_by_their_beginning(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 4, seed=0)
    sparse(images / "film.mp4", b"\0\0\0\x20ftypisom", 20 * GB)
    sparse(images / "film.avi", b"RIFF\xff\xff\xff\xffAVI LIST", 2 * MB)
    sparse(images / "film.jpg", b"\x1aE\xdf\xa3matroska", 3 * MB)
    sparse(images / "giant.jpg", b"\xff\xd8\xff\xe0", 2 * GB)
    (images / "notes.txt").write_text("no image")
    summary = preprocess_small(tmp_path / "d", images)
    assert summary["reasons"] == {"unknown format": 4, "too large": 1}
    table = rows(tmp_path / "d")
    assert table["film.mp4"]["bytes"] == 20 * GB and table["film.mp4"]["content_hash"] is None
    assert table["film.avi"]["content_hash"] == digest((images / "film.avi").read_bytes())
    assert (table["giant.jpg"]["reason"], table["giant.jpg"]["detail"]) == ("too large", f"{2 * GB} bytes")
    assert preprocess_small(tmp_path / "d", images) == {}
    # Touched, and still the same bytes: hashed in pieces, and known.
    os.utime(images / "film.avi")
    os.utime(images / "notes.txt")
    assert preprocess_small(tmp_path / "d", images) == {}


@pytest.mark.usefixtures("session")
def test_max_bytes_is_part_of_the_dataset(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 4, seed=0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(images / "large.png")
    size = (images / "large.png").stat().st_size
    assert preprocess_small(tmp_path / "a", images, max_bytes=size)["train"] == 5
    summary = preprocess_small(tmp_path / "b", images, max_bytes=size - 1)
    assert (summary["train"], summary["reasons"]) == (4, {"too large": 1})
    with pytest.raises(UserError, match=rf"max_bytes: {size - 1} -> {size}"):
        preprocess_small(tmp_path / "b", images, max_bytes=size)
    with pytest.raises(ValueError, match=r"`max_bytes` \(=0\) must be at least 1"):
        preprocess_small(tmp_path / "c", images, max_bytes=0)


def peak_of(code: str, *arguments: object) -> int:
    """The most memory, in bytes, that `code` takes in a process of its own, beyond what its imports take."""
    code = (
        "import sys; from pipelines.preprocess.reading import *; base = Location('/')\n"
        "def peak(): return 1024 * int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        f"before = peak()\n{code}\nprint(peak() - before)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def test_memory_is_once_the_file_and_less_for_what_is_no_image(tmp_path: Path) -> None:
    size = 256 * MB
    image = sparse(tmp_path / "image", b"\xff\xd8\xff\xe0", size)
    film = sparse(tmp_path / "film", b"\0\0\0\x20ftyp", size)
    read = "data = read_file(base, sys.argv[1].encode(), 1 << 30)"
    assert size <= peak_of(read, image) < 1.2 * size
    caught = f"try:\n    {read}\nexcept NotLoadedError:\n    pass"
    assert peak_of(caught, film) < 48 * MB
    assert peak_of("hash_file(base, sys.argv[1].encode(), 1 << 30)", image) < 48 * MB


@pytest.mark.parametrize("size", [0, 1, 15, LOADED_AT_ONCE - 1, LOADED_AT_ONCE, LOADED_AT_ONCE + 1, 9 * MB])
def test_whole_files_are_read_and_hashed(tmp_path: Path, size: int) -> None:
    data = (b"\xff\xd8\xff" + np.random.default_rng(0).bytes(size))[:size]
    (tmp_path / "a").write_bytes(data)
    base = Location(tmp_path)
    if size in (0, 15, LOADED_AT_ONCE, LOADED_AT_ONCE + 1, 9 * MB):
        assert read_file(base, b"a", GB) == data
    assert hash_file(base, b"a", GB) == digest(data)
    assert hash_file(base, b"a", size - 1) is None
    (tmp_path / "b").write_bytes(b"no image"[:size] + data[8:])
    if size:
        with pytest.raises(NotLoadedError) as caught:
            read_file(base, b"b", GB)
        assert (caught.value.size, caught.value.content_hash) == (size, digest((tmp_path / "b").read_bytes()))


@pytest.mark.parametrize(
    "path", [b"nowhere", b"a\0b", b"folder", b"pipe", b"loop", b"a/b", b"file://other/a", b"://", b"n://b/x"]
)
def test_whatever_goes_wrong_is_a_rejection(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RejectedImageError) as caught:
        read_file(Location(tmp_path), path, GB)
    expected = {b"folder": "irregular", b"pipe": "irregular", b"n://b/x": "unreadable", b"a\0b": "unreadable"}
    assert caught.value.reason == expected.get(path, "missing")


@pytest.mark.usefixtures("session")
def test_dates_and_links_of_any_kind(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_images(images, 8, seed=0)
    names = [f"{'ab'[number % 2]}/{number:04d}.png" for number in range(8)]
    dates = [15_000_000_000, 15_032_385_535, 9_223_372_037, -(2**31), -5, 0, 1, 2**31]
    for name, date in zip(names, dates, strict=True):
        os.utime(images / name, (date, date))
    (images / "loop").symlink_to("loop")
    (images / "one").symlink_to("other")
    (images / "other").symlink_to("one")
    (images / "a" / "above").symlink_to("..")
    (images / "itself").symlink_to(".")
    (images / "link_to_link").symlink_to("link_to_folder")
    (tmp_path / "far").mkdir()
    Image.new("L", (20, 20), 7).save(tmp_path / "far" / "far.png")
    (images / "link_to_folder").symlink_to(tmp_path / "far")
    (images / "z_link").symlink_to("a/0000.png")
    summary = preprocess_small(tmp_path / "d", images)
    table = rows(tmp_path / "d")
    assert {name: table[name]["status"] for name in names} == dict.fromkeys(names, "image")
    assert table[names[0]]["mtime_ns"] == 2**63 - 1 and table[names[3]]["mtime_ns"] == -(2**31) * 10**9
    assert {name: table[name]["reason"] for name in ("loop", "one", "other")} == dict.fromkeys(
        ("loop", "one", "other"), "missing"
    )
    assert summary["reasons"] == {"missing": 3}
    assert preprocess_small(tmp_path / "d", images) == {}
    os.utime(images / names[0])
    assert preprocess_small(tmp_path / "d", images) == {}
    for place in (images / "loop", images / "one"):
        with pytest.raises(UserError, match=r"`input` .*missing, where a folder of image files was expected"):
            preprocess_small(tmp_path / "e", place)


@pytest.mark.usefixtures("session")
def test_names_above_that_are_not_utf8(tmp_path: Path) -> None:
    above = tmp_path / os.fsdecode(b"caf\xe9 \xff")
    write_images(above / "photos", 4, seed=0)
    with tarfile.open(above / "photos" / "shard.tar", "w") as archive:
        archive.add(above / "photos" / "a" / "0000.png", "copy.png")
    tracking = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    summary = preprocess_small(tmp_path / "d", above / "photos", **tracking)
    assert (summary["train"], summary["duplicate"]) == (4, 1)
    assert preprocess_small(tmp_path / "d", above / "photos", **tracking) == {}
    write_images(above / "photos" / "more", 2, seed=1)
    assert preprocess_small(tmp_path / "d", above / "photos", **tracking)["train"] == 2
    # The dataset itself may lie there.
    assert preprocess_small(above / "d", above / "photos", **tracking)["train"] == 6
    inspect_dataset(InspectJob(dataset=Location(above / "d"), verify=True))
    assert len(Dataset.open(above / "d").images().ids) == 6


@pytest.mark.usefixtures("session")
def test_a_holdout_that_leaves_nothing_to_train_on_is_named_and_fixes_nothing(tmp_path: Path) -> None:
    images, dataset = tmp_path / "images", tmp_path / "d"
    write_images(images, 4, seed=0)
    with pytest.raises(UserError, match=r"^`holdout` \(=0.999\) takes all 4 image\(s\), and leaves none to train on"):
        preprocess_small(dataset, images, holdout=0.999)
    assert not (dataset / "dataset.json").exists() and not list(dataset.rglob("*.parquet"))
    # Only decoding tells that no file for training is an image.
    write_images(images, 12, seed=0)
    preprocess_small(tmp_path / "probe", images, holdout=0.5)
    for name, row in rows(tmp_path / "probe").items():
        if row["split"] == "train":
            (images / name).write_text("no image")
    with pytest.raises(UserError, match=r"^`holdout` \(=0.5\) takes all \d+ image\(s\), and leaves none to train on"):
        preprocess_small(dataset, images, holdout=0.5)
    assert not (dataset / "dataset.json").exists() and not list(dataset.rglob("*.parquet"))
    assert preprocess_small(dataset, images, holdout=0.25)["train"] > 0
