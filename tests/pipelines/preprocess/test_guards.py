"""Another folder of the same name, many changes at once, a mount that is away: nothing is lost, one line says why."""

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.location import Location
from glo_core.dataset_format.snapshots import read_snapshots
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.decode_task import PlanTask, decode_block
from pipelines.preprocess.guards import require_base
from pipelines.preprocess.plan import make_plan
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "one" / "photos", 20, seed=0)
    return tmp_path / "one" / "photos"


def training_ids(dataset: Path) -> set[int]:
    return set(Dataset.open(dataset).images().ids.tolist())


def refusal(dataset: Path, *inputs: Path, **settings: Any) -> str:
    """The one line of a run that changes nothing."""
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError) as caught:
        preprocess_small(dataset, *inputs, **settings)
    assert {path: path.read_bytes() for path in before} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("on_change", ["keep", "replace"])
def test_another_folder_of_the_same_name_is_another_source(on_change: str, photos: Path, tmp_path: Path) -> None:
    dataset, other = tmp_path / "d", tmp_path / "two" / "photos"
    preprocess_small(dataset, photos)
    before = training_ids(dataset)
    photos.rename(tmp_path / "not mounted today")
    write_images(other, 20, seed=1)  # The same paths, as of any camera
    shutil.copy(tmp_path / "not mounted today" / "a" / "0000.png", other / "a" / "0000.png")  # And one same file
    summary = preprocess_small(dataset, other, on_change=on_change)
    assert (summary["changed"], summary["train"], summary["duplicate"]) == (0, 19, 1)
    assert before < training_ids(dataset)
    assert set(Dataset.open(dataset).snapshots[-1].sources) == {"photos", "photos-2"}
    # The first one comes back elsewhere: it is recognized by its files, though some of them changed or went.
    moved = tmp_path / "three" / "photos"
    moved.parent.mkdir()
    (tmp_path / "not mounted today").rename(moved)
    (moved / "a" / "0002.png").unlink()
    Image.new("L", (20, 20), 3).save(moved / "b" / "0001.png")
    summary = preprocess_small(dataset, moved)
    assert (summary["changed"], summary["vanished"], summary["train"]) == (1, 1, 1)
    assert Dataset.open(dataset).snapshots[-1].sources["photos"] == str(moved)


def test_shards_that_moved_are_recognized_by_their_members(tmp_path: Path) -> None:
    import tarfile

    write_images(tmp_path / "images", 8, seed=0)
    shards, dataset = tmp_path / "one" / "shards", tmp_path / "d"
    shards.mkdir(parents=True)
    with tarfile.open(shards / "0.tar", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            archive.add(path, path.name)
    preprocess_small(dataset, shards)
    (tmp_path / "two").mkdir()
    shards.rename(tmp_path / "two" / "shards")
    assert preprocess_small(dataset, tmp_path / "two" / "shards") == {}


@pytest.mark.parametrize("on_change", ["keep", "replace"])
def test_more_than_a_tenth_changed_at_once_needs_a_word(on_change: str, photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    before = training_ids(dataset)
    for number in (0, 2, 4):
        Image.new("L", (20, 20), 50 + number).save(photos / "a" / f"{number:04d}.png")
    line = refusal(dataset, photos, on_change=on_change)
    assert "of its 20 files in the dataset 3 changed and 0 are gone, which is more than a tenth" in line
    assert "give `yes`" in line
    assert training_ids(dataset) == before
    summary = preprocess_small(dataset, photos, on_change=on_change, yes=True)
    assert (summary["changed"], summary["replaced"]) == (3, 3 if on_change == "replace" else 0)
    assert preprocess_small(dataset, photos, on_change=on_change) == {}


def test_a_folder_that_is_half_gone_takes_no_new_files_without_a_word(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    shutil.rmtree(photos / "a")
    assert preprocess_small(dataset, photos) == {}  # Nothing is new, and every image stays.
    write_images(photos / "c", 2, seed=5)
    assert "0 changed and 10 are gone" in refusal(dataset, photos)
    assert preprocess_small(dataset, photos, yes=True)["train"] == 2
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


def test_one_change_in_a_small_folder_needs_no_word(tmp_path: Path) -> None:
    write_images(tmp_path / "few", 4, seed=0)
    preprocess_small(tmp_path / "d", tmp_path / "few")
    Image.new("L", (20, 20), 9).save(tmp_path / "few" / "a" / "0000.png")
    assert preprocess_small(tmp_path / "d", tmp_path / "few")["train"] == 1


# ---------------------------------------------------------------- mounts


def plan_of(dataset: Path, folder: Path) -> None:
    """A committed plan for what is new in `folder`, of which nothing is decoded."""
    make_plan(
        Location(dataset),
        len(read_snapshots(Location(dataset))) + 1,
        Dataset.open(dataset).config,
        [Location(folder)],
        retry=np.empty(0, np.int64),
        require_lease=lambda: None,
    )


@pytest.mark.parametrize("left", ["nothing", "mount point"])
def test_a_node_without_the_mount_rejects_nothing_and_the_plan_stays(left: str, photos: Path, tmp_path: Path) -> None:
    dataset, away = tmp_path / "d", tmp_path / "away"
    preprocess_small(dataset, photos)
    write_images(photos / "later", 6, seed=3)
    plan_of(dataset, photos)
    photos.rename(away)  # As it is on a node, or for a moment, without the mount
    if left == "mount point":
        photos.mkdir()
    import ray

    from glo_core.dataset_format.hash_index import halves
    from pipelines.preprocess.content_index import ContentIndex
    from pipelines.preprocess.plan import pending_plan

    plan = pending_plan(Location(dataset), 1)
    assert plan is not None
    contents = ray.put(ContentIndex(halves(b""), halves(b""), np.empty(0, np.int64)))
    task = PlanTask(dataset=Location(dataset), number=2, plan_id=plan.record.plan_id, run="r", contents=contents)
    report = decode_block({"block": 0}, task)
    assert str(photos) in report["error"] and socket.gethostname() in report["error"]
    assert "\n" not in report["error"]
    assert not list(dataset.glob("*/000002-*"))
    if left == "mount point":
        photos.rmdir()
        assert f"missing, where a folder of image files was expected on {socket.gethostname()}" in refusal(
            dataset, photos
        )
    away.rename(photos)
    summary = preprocess_small(dataset, photos)
    assert (summary["train"], summary["rejected"]) == (6, 0)


def test_a_mount_that_goes_while_images_are_read_is_one_line(photos: Path, tmp_path: Path) -> None:
    """A list names files of another folder, which is gone when its lines are read."""
    dataset, far = tmp_path / "d", tmp_path / "far"
    preprocess_small(dataset, photos)
    write_images(far, 6, seed=4)
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([*map(str, sorted(far.rglob("*.png"))), str(tmp_path / "never" / "there.png")]))
    plan_of(dataset, listing)
    far.rename(tmp_path / "away")
    line = refusal(dataset, listing)
    assert f"{far}/" in line and socket.gethostname() in line and "run the same command again" in line
    (tmp_path / "away").rename(far)
    summary = preprocess_small(dataset, listing)
    # A line that was wrong from the start is a rejection as ever.
    assert (summary["train"], summary["reasons"]) == (6, {"missing": 1})


def test_a_file_that_goes_between_listing_and_reading_is_a_rejection(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    write_images(photos / "later", 6, seed=3)
    plan_of(dataset, photos)
    (photos / "later" / "a" / "0000.png").unlink()
    summary = preprocess_small(dataset, photos)
    assert (summary["train"], summary["reasons"]) == (5, {"missing": 1})


def test_a_mount_below_the_base_is_looked_at_too(tmp_path: Path) -> None:
    write_images(tmp_path / "local", 2, seed=0)
    (tmp_path / "nas").mkdir()
    base = Location(tmp_path)
    for path in (b"nas/b.png", b"gone/deep/b.png", bytes(tmp_path / "nas" / "b.png")):
        with pytest.raises(UserError, match=r"/(nas|gone/deep): not there, or empty, on "):
            require_base(base, path, was_there=True)
        require_base(base, path, was_there=False)  # A line that was wrong from the start
    require_base(base, b"local/a/gone.png", was_there=True)


def test_a_real_mount_that_is_taken_away(tmp_path: Path) -> None:
    mount, disk, dataset = tmp_path / "mount", tmp_path / "disk", tmp_path / "d"
    mount.mkdir()
    write_images(disk, 10, seed=0)
    if subprocess.run(["mount", "--bind", disk, mount], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        preprocess_small(dataset, mount)
        write_images(mount / "later", 4, seed=1)
        plan_of(dataset, mount)
        subprocess.run(["umount", mount], check=True)
        assert "not there, or empty, on " in refusal(dataset, mount)
        subprocess.run(["mount", "--bind", disk, mount], check=True)
        assert preprocess_small(dataset, mount)["train"] == 4
    finally:
        subprocess.run(["umount", mount], capture_output=True)
