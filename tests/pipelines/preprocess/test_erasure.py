"""Erased pixels are found nowhere on the disk; ids, digests and every other image stay as they are."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from glo_core import Dataset, UserError
from glo_core.common.arrays import UInt8Array
from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.erasure import erase_removed
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.removal import remove_images
from tests.helpers.paths import ROOT

GOLDEN = {"resolution": 8, "channels": 3, "code_shards": 4, "holdout": 0.2}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "golden" / "v1" / "dataset", tmp_path / "dataset")
    return tmp_path / "dataset"


def erase(dataset: Path | str, *remove: object) -> dict[str, object]:
    return preprocess(
        PreprocessJob(dataset=Location(dataset), remove=tuple(map(str, remove)), erase=True, **GOLDEN)  # type: ignore[arg-type]
    )


def pixels(dataset: Path | str) -> dict[int, bytes]:
    opened = Dataset.open(dataset)
    return {
        int(i): image.tobytes()
        for source in (opened.images(), opened.held_out())
        for i, image in zip(source.ids, source.take(np.arange(len(source.ids))).numpy(), strict=True)
    }


def on_disk(dataset: Path, data: bytes) -> list[str]:
    """Files of the dataset, hidden ones too, that hold `data` or a third of it."""
    third = data[len(data) // 3 : 2 * len(data) // 3]
    return [str(path) for path in dataset.rglob("*") if path.is_file() and third in path.read_bytes()]


def verify(dataset: Path | str) -> None:
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


def test_erased_pixels_are_nowhere_and_everything_else_is_as_before(dataset: Path) -> None:
    before, opened = pixels(dataset), Dataset.open(dataset)
    train, held_out = opened.images(), opened.held_out()
    first, second, third = int(train.ids[1]), int(train.ids[9]), int(held_out.ids[0])
    assert on_disk(dataset, before[first])
    # A reader that has the block mapped goes on with what it has.
    image: UInt8Array = train.take(np.array([1])).numpy()
    assert erase(dataset, first, third)["erased_blocks"] == 1
    np.testing.assert_array_equal(train.take(np.array([1])).numpy(), image)
    for image_id in (first, third):
        assert not on_disk(dataset, before[image_id])
    assert pixels(dataset) == {i: data for i, data in before.items() if i not in {first, third}}
    after = Dataset.open(dataset)
    assert after.snapshots[0].digest == opened.digest and len(after.snapshots) == 2
    verify(dataset)
    # Again, and of what was removed without it.
    assert erase(dataset)["erased_blocks"] == 0
    digest = after.digest
    preprocess(PreprocessJob(dataset=Location(dataset), remove=(str(second),), **GOLDEN))  # type: ignore[arg-type]
    assert on_disk(dataset, before[second])
    assert erase(dataset)["erased_blocks"] == 1
    assert not on_disk(dataset, before[second])
    assert Dataset.open(dataset).snapshots[1].digest == digest
    verify(dataset)


def test_what_killed_writers_left_is_swept_too(dataset: Path) -> None:
    before = pixels(dataset)
    image_id = min(before)
    block = next((dataset / "blocks").iterdir())
    shutil.copy(block, block.with_name(f".{block.name}.tmp-host-1"))
    shutil.copy(block, block.with_name("000002-00000.arrow"))
    erase(dataset, image_id)
    assert not on_disk(dataset, before[image_id])
    assert [path.name for path in (dataset / "blocks").iterdir()] == [block.name]


@pytest.mark.parametrize(
    "left", [("blocks",), ("blocks", "snapshots"), ("blocks", "snapshots", "manifest")], ids=lambda left: len(left)
)
def test_an_interrupted_erasure_is_made_good_by_the_next(left: tuple[str, ...], dataset: Path) -> None:
    """The records are written first and the block last: what is `left` as it was, by where it stopped."""
    before = pixels(dataset)
    image_id = min(before)
    preprocess(PreprocessJob(dataset=Location(dataset), remove=(str(image_id),), **GOLDEN))  # type: ignore[arg-type]
    old = {folder: sorted((dataset / folder).iterdir())[0] for folder in left}
    data = {folder: path.read_bytes() for folder, path in old.items()}
    erase(dataset)
    for folder, path in old.items():
        path.write_bytes(data[folder])
    assert on_disk(dataset, before[image_id])
    assert image_id not in pixels(dataset)
    assert erase(dataset)["erased_blocks"] == 1
    assert not on_disk(dataset, before[image_id])
    verify(dataset)


def test_a_damaged_block_is_refused_and_left_alone(dataset: Path) -> None:
    image_id, block = min(pixels(dataset)), next((dataset / "blocks").iterdir())
    data = bytearray(block.read_bytes())
    data[data.index(pixels(dataset)[max(pixels(dataset))]) + 5] ^= 1
    block.write_bytes(data)
    with pytest.raises(UserError, match="its checksum is not the snapshot's"):
        erase(dataset, image_id)
    assert block.read_bytes() == data
    assert [path.name for path in (dataset / "blocks").iterdir()] == [block.name]


def test_where_nothing_is_removed_nothing_is_written(dataset: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    assert erase(dataset) == {"erased_blocks": 0}
    assert {path: path.read_bytes() for path in files} == files
    with pytest.raises(UserError, match="holds no image yet, so that `erase` has nothing to do"):
        erase(tmp_path / "none")
    assert not (tmp_path / "none" / "dataset.json").exists()


def test_a_dataset_in_a_bucket(dataset: Path, bucket: str) -> None:
    remote = Location(bucket.replace("FOLDER", "erased"))
    for path in dataset.rglob("*"):
        if path.is_file():
            Location(bucket.replace("FOLDER", f"erased/{path.relative_to(dataset)}")).put(path)
    (remote / "blocks" / ".000001-00000.arrow.tmp-0123").put(next((dataset / "blocks").iterdir()))
    before = pixels(str(remote))
    image_id = min(before)
    assert erase(str(remote), image_id)["erased_blocks"] == 1
    names = (remote / "blocks").names()
    assert names == ["000001-00000.arrow"]
    assert before[image_id] not in (remote / "blocks" / names[0]).read_bytes()
    assert pixels(str(remote)) == {i: data for i, data in before.items() if i != image_id}
    verify(str(remote))


def test_pictures_that_mlflow_has_missed_go_too(dataset: Path) -> None:
    folder = dataset / "tracking" / "000001"
    folder.mkdir(parents=True)
    for name in ("progress.jsonl", "new_images.png"):
        (folder / name).write_bytes(b"")
    erase(dataset, int(Dataset.open(dataset).images().ids[0]))
    assert [path.name for path in folder.iterdir()] == ["progress.jsonl"]


def test_erasing_below_a_path_that_is_not_utf8(dataset: Path, tmp_path: Path) -> None:
    above = tmp_path / os.fsdecode(b"caf\xe9 \xff")
    above.mkdir()
    place = dataset.rename(above / "d")
    before = pixels(place)
    gone = min(before)
    remove_images(Location(place), [str(gone)])
    assert erase_removed(Location(place), lambda: None) == 1
    assert on_disk(place, before[gone]) == []
    assert pixels(place) == {i: image for i, image in before.items() if i != gone}
