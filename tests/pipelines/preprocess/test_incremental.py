"""The same dataset, run after run: files that are new, moved, copied, touched, changed, gone, rejected, removed."""

import dataclasses
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess import file_index
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.job import preprocess
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

CONFIG = {"resolution": 16, "channels": 1, "code_shards": 4}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", 20, seed=0)
    return tmp_path / "photos"


def training_ids(dataset: Path) -> set[int]:
    return set(Dataset.open(dataset).images().ids.tolist())


def id_of(dataset: Path, path: bytes) -> int:
    """Newest id of a path."""
    rows = pa.concat_tables([pq.read_table(p) for p in sorted((dataset / "manifest").iterdir())]).to_pylist()
    return int(next(row["image_id"] for row in reversed(rows) if row["path"] == path))


@pytest.mark.usefixtures("session")
def test_moved_and_copied_files_are_no_second_image(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    before = training_ids(dataset)
    (photos / "c").mkdir()
    (photos / "a" / "0000.png").rename(photos / "c" / "moved.png")
    shutil.copy(photos / "a" / "0002.png", photos / "c" / "copied.png")
    summary = preprocess_small(dataset, photos)
    assert (summary["files"], summary["train"], summary["duplicate"], summary["vanished"]) == (2, 0, 2, 1)
    assert training_ids(dataset) == before
    # Bytes that the dataset has are not decoded again, and take no room in a block.
    assert pq.read_table(dataset / "manifest" / "000002-00000.parquet")["width"].null_count == 2


@pytest.mark.usefixtures("session")
def test_a_folder_that_moved_as_a_whole_is_the_same_source(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    (tmp_path / "disk").mkdir()
    photos.rename(tmp_path / "disk" / "photos")
    assert preprocess_small(dataset, tmp_path / "disk" / "photos") == {}
    write_images(tmp_path / "disk" / "photos" / "more", 2, seed=4)
    assert preprocess_small(dataset, tmp_path / "disk" / "photos")["train"] == 2
    # Another folder of the same name, while the first is there, is another source.
    write_images(tmp_path / "photos", 2, seed=5)
    assert preprocess_small(dataset, tmp_path / "photos")["train"] == 2
    assert set(Dataset.open(dataset).snapshots[-1].sources) == {"photos", "photos-2"}


@pytest.mark.usefixtures("session")
def test_a_touched_file_is_hashed_once_and_is_nothing_new(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert preprocess_small(dataset, photos) == {}
    monkeypatch.setattr(file_index, "hash_file", lambda *_: pytest.fail("a file was read although nothing changed"))
    assert preprocess_small(dataset, photos) == {}


@pytest.mark.usefixtures("session")
def test_a_changed_file_is_a_new_image_and_the_old_one_stays_or_goes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, changing = tmp_path / "d", photos / "a" / "0000.png"
    preprocess_small(dataset, photos)
    old, whole, first = id_of(dataset, b"a/0000.png"), changing.read_bytes(), training_ids(dataset)
    Image.new("L", (20, 20), 9).save(changing)
    capsys.readouterr()
    summary = preprocess_small(dataset, photos)
    assert (summary["files"], summary["changed"], summary["train"]) == (1, 1, 1)
    assert "changed 1: new images under new ids (photos/a/0000.png)" in capsys.readouterr().out
    second = id_of(dataset, b"a/0000.png")
    assert training_ids(dataset) == first | {second}
    Image.new("L", (20, 20), 99).save(changing)
    assert preprocess_small(dataset, photos, on_change="replace")["train"] == 0  # One more, one less.
    third = id_of(dataset, b"a/0000.png")
    assert Dataset.open(dataset).snapshots[-1].replaced == {second: third}
    assert training_ids(dataset) == first | {third}
    assert len(Dataset.open(dataset).images().ids) == Dataset.open(dataset).num_train
    # The bytes that were replaced may come back as a new image; those that stayed are a duplicate.
    (photos / "a" / "again.png").write_bytes(whole)
    assert preprocess_small(dataset, photos)["duplicate"] == 1
    assert old in training_ids(dataset)
    Image.new("L", (20, 20), 9).save(changing)
    assert preprocess_small(dataset, photos, on_change="replace")["train"] == 0
    assert training_ids(dataset) == first | {id_of(dataset, b"a/0000.png")}
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


@pytest.mark.usefixtures("session")
def test_replacing_never_loses_bytes_that_a_file_still_has(photos: Path, tmp_path: Path) -> None:
    dataset, one, other = tmp_path / "d", photos / "a" / "0000.png", photos / "b" / "0001.png"
    preprocess_small(dataset, photos)
    before = training_ids(dataset)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    summary = preprocess_small(dataset, photos, on_change="replace")
    assert (summary["changed"], summary["duplicate"], summary["train"]) == (2, 2, 0)
    assert training_ids(dataset) == before
    # A copy holds the bytes of the image that changes.
    shutil.copy(photos / "a" / "0002.png", photos / "copy.png")
    preprocess_small(dataset, photos)
    Image.new("L", (20, 20), 77).save(photos / "a" / "0002.png")
    assert preprocess_small(dataset, photos, on_change="replace")["train"] == 1
    assert before < training_ids(dataset)
    # Between two whole states a file may be broken for a while.
    changing, old = photos / "b" / "0003.png", id_of(dataset, b"b/0003.png")
    changing.write_bytes(changing.read_bytes()[:60])
    preprocess_small(dataset, photos, on_change="replace")
    assert old in training_ids(dataset)
    Image.new("L", (20, 20), 33).save(changing)
    preprocess_small(dataset, photos, on_change="replace")
    assert old not in training_ids(dataset) and id_of(dataset, b"b/0003.png") in training_ids(dataset)


@pytest.mark.usefixtures("session")
def test_nothing_is_lost_by_a_mistake_between_two_runs(photos: Path, tmp_path: Path) -> None:
    dataset, empty = tmp_path / "d", tmp_path / "empty"
    empty.mkdir()
    shard = photos / "s.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(photos / "a" / "0000.png", "x.png")
    preprocess_small(dataset, photos)
    Image.new("L", (20, 20), 44).save(tmp_path / "new.png")
    with tarfile.open(shard, "a") as archive:
        archive.add(tmp_path / "new.png", "new.png")
    with pytest.raises(UserError, match="holds no file"):
        preprocess_small(dataset, photos, empty)
    assert preprocess_small(dataset, photos)["train"] == 1
    # A removal waits for an interrupted run.
    Image.new("L", (20, 20), 55).save(photos / "later.png")
    preprocess_small(dataset, photos)
    for name in ("snapshots/000003.json", "manifest/000003-00000.parquet", "blocks/000003-00000.arrow"):
        (dataset / name).unlink()
    with pytest.raises(UserError, match="an interrupted run is not finished"):
        preprocess_small(dataset, remove=("0",))
    assert preprocess_small(dataset, photos)["train"] == 1


@pytest.mark.usefixtures("session")
def test_odd_entries_of_a_folder_cost_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "up").symlink_to(photos)
    (photos / "folder.jpg").mkdir()
    Image.new("L", (20, 20), 201).save(photos / "wow!.png")
    Image.new("L", (20, 20), 202).save(photos / "n.png")
    (photos / "n.png").rename(photos / os.fsdecode(b"n\xff\n.png"))
    os.mkfifo(photos / "pipe.png")
    shard = photos / os.fsdecode(b"m\xe4rz.tar")
    with tarfile.open(shard, "w") as archive:
        for n in range(4):
            Image.new("L", (20, 20), 10 * n).save(tmp_path / "m.png")
            archive.add(tmp_path / "m.png", f"{n}.png")
    whole = shard.read_bytes()
    header = whole.index(b"2.png")
    shard.write_bytes(whole[:header] + b"!" + whole[header + 1 :])  # Its checksum is wrong now.
    summary = preprocess_small(tmp_path / "d", photos)
    assert summary["train"] == 24  # 20 photos, two of odd names, and two members before the damage.
    unread = {"missing", "unreadable"} & summary["reasons"].keys()  # The loop: Python's word for it has changed.
    assert summary["reasons"] == {"irregular": 1, "broken container": 1} | dict.fromkeys(unread, 1)
    assert len(unread) == 1
    assert preprocess_small(tmp_path / "d", photos) == {}
    preprocess_small(tmp_path / "d", remove=("photos/wow!.png",))
    assert len(training_ids(tmp_path / "d")) == summary["train"] - 1


@pytest.mark.usefixtures("session")
def test_a_vanished_file_is_reported_and_stays(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    before = training_ids(dataset)
    (photos / "b" / "0003.png").unlink()
    assert preprocess_small(dataset, photos) == {}
    assert "vanished 1: their images stay (photos/b/0003.png)" in capsys.readouterr().out
    assert training_ids(dataset) == before


@pytest.mark.usefixtures("session")
def test_rejected_files_are_tried_again_when_they_changed_or_on_request(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    whole = (photos / "a" / "0000.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[:90])
    (photos / "link.png").symlink_to(tmp_path / "later.png")
    assert preprocess_small(dataset, photos)["reasons"] == {"truncated": 1, "missing": 1}
    assert preprocess_small(dataset, photos) == {}
    summary = preprocess_small(dataset, photos, retry_rejected=True)
    assert (summary["files"], summary["rejected"]) == (2, 2)
    Image.new("L", (20, 20), 50).save(tmp_path / "later.png")
    Image.new("L", (20, 20), 150).save(photos / "cut.png")
    assert preprocess_small(dataset, photos)["train"] == 2
    assert preprocess_small(dataset, photos, retry_rejected=True) == {}


@pytest.mark.usefixtures("session")
def test_images_are_removed_by_id_and_by_path_and_stay_away(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    before, named = training_ids(dataset), id_of(dataset, b"b/0005.png")
    other = min(before - {named})
    preprocess_small(dataset, remove=(str(other), "photos/b/0005.png"))
    assert training_ids(dataset) == before - {named, other}
    assert Dataset.open(dataset).num_train == 18
    assert preprocess_small(dataset, photos) == {}
    shutil.copy(photos / "b" / "0005.png", photos / "b" / "copy.png")
    assert preprocess_small(dataset, photos)["duplicate"] == 1
    assert training_ids(dataset) == before - {named, other}
    assert preprocess_small(dataset, remove=(str(other),)) == {}
    copied = id_of(dataset, b"b/copy.png")
    for name, why in {
        "photos/b/none.png": "no image of",
        "12345": "no image of",
        str(copied): f"a duplicate of image {named}",
        "photos/b/copy.png": f"a duplicate of image {named}",
    }.items():
        with pytest.raises(UserError, match=why):
            preprocess_small(dataset, remove=(name,))
    with pytest.raises(UserError, match="was removed"):
        inspect_dataset(InspectJob(dataset=Location(dataset), export=str(named), output=tmp_path))
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))
    assert "2 removed" in capsys.readouterr().out


@pytest.mark.usefixtures("session")
def test_verify_names_what_is_wrong(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    job = InspectJob(dataset=Location(dataset), verify=True)
    inspect_dataset(job)
    block = dataset / "blocks" / "000001-00000.arrow"
    whole = block.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(Dataset.open(dataset).images().take(np.array([0])).numpy().tobytes()) + 9] ^= 1
    block.write_bytes(damaged)
    with pytest.raises(UserError, match="1 thing"):
        inspect_dataset(job)
    assert "blocks/000001-00000.arrow: its checksum is not the snapshot's" in capsys.readouterr().out
    block.unlink()
    with pytest.raises(UserError, match="1 thing"):
        inspect_dataset(job)
    block.write_bytes(whole)
    part = dataset / "manifest" / "000001-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.slice(1), part)
    with pytest.raises(UserError):
        inspect_dataset(job)
    assert "its digest is not that of the manifest's" in capsys.readouterr().out


@pytest.mark.usefixtures("session")
def test_a_golden_dataset_is_appended_to(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    shutil.copytree(Path(__file__).parents[2] / "golden" / "v1" / "dataset", dataset)
    before, record = Dataset.open(dataset), (dataset / "dataset.json").read_text()
    config = {f.name: getattr(before.config, f.name) for f in dataclasses.fields(before.config)}
    summary = preprocess(PreprocessJob(input=(Location(photos),), dataset=Location(dataset), **config))
    after = Dataset.open(dataset)
    assert after.num_train == before.num_train + summary["train"]
    assert after.snapshots[0] == before.snapshots[0]
    assert min(set(after.images().ids) - set(before.images().ids)) > max(before.images().ids)
    assert (dataset / "dataset.json").read_text() == record
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))
