"""Law: an id that a snapshot removes is skipped by every reader, whatever older snapshot the reader works on."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import glo_core as glo
from glo_core import Dataset, UserError
from glo_core.common.location import Location
from glo_core.dataset_format.snapshots import SnapshotCounts
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.removal import remove_images
from pipelines.preprocess.report import sample_images
from tests.helpers.paths import ROOT


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "golden" / "v1" / "dataset", tmp_path / "dataset")
    return tmp_path / "dataset"


def images(dataset: Dataset) -> dict[int, bytes]:
    """Every image that a reader of `dataset` sees, by id."""
    sources = [dataset.images(), dataset.held_out(), dataset.images([0, 2]), dataset.images().select([1])]
    return {
        int(image_id): pixels.tobytes()
        for source in sources
        for image_id, pixels in zip(source.ids, source.take(np.arange(len(source.ids))).numpy(), strict=True)
    }


def test_every_older_snapshots_reader_skips_removed_ids(dataset: Path) -> None:
    before = Dataset.open(dataset)
    whole = images(before)
    train_ids, held_out = before.images().ids[[3, 7]].tolist(), int(before.held_out().ids[0])
    first = remove_images(Location(dataset), [str(train_ids[0]), str(held_out)])
    second = remove_images(Location(dataset), [str(train_ids[1])])
    assert first is not None and second is not None
    assert first.removed == tuple(sorted([train_ids[0], held_out]))
    assert first.counts == SnapshotCounts(files=0, train=-1, holdout=-1, duplicate=0, rejected=0)
    after = Dataset.open(dataset)
    assert [s.digest for s in after.snapshots] == [before.digest, first.digest, second.digest]
    expected = {i: pixels for i, pixels in whole.items() if i not in {*train_ids, held_out}}
    assert len(expected) == len(whole) - 3
    for snapshot in after.snapshots:
        assert images(after.at(snapshot.digest)) == expected
        assert after.at(snapshot.digest).digest == snapshot.digest
    assert after.num_train == before.num_train - 2 == len(after.images().ids)
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


def test_what_is_removed_already_is_no_second_snapshot_and_no_image(dataset: Path) -> None:
    image_id = int(Dataset.open(dataset).images().ids[0])
    assert remove_images(Location(dataset), [str(image_id)]) is not None
    assert remove_images(Location(dataset), [str(image_id)]) is None
    assert len(Dataset.open(dataset).snapshots) == 2
    with pytest.raises(UserError, match=rf"^{image_id}: was removed from the dataset$"):
        inspect_dataset(InspectJob(dataset=Location(dataset), export=str(image_id)))


def test_a_dataset_that_was_opened_before_skips_what_is_removed_after(dataset: Path) -> None:
    opened = Dataset.open(dataset)
    image_id = int(opened.images().ids[2])
    remove_images(Location(dataset), [str(image_id)])
    assert image_id not in opened.images().ids
    assert image_id not in opened.at(opened.digest).images([image_id % opened.config.code_shards]).ids


def test_a_checkpoint_of_an_older_snapshot_gives_no_code_and_no_picture_of_a_removed_image(dataset: Path) -> None:
    run = ROOT / "tests" / "golden" / "v1" / "run"
    before = glo.load(run, images=Dataset.open(dataset))
    image_id = int(before.ids[4])
    path = next(
        f"golden/{row['path'].decode()}"
        for row in pq.read_table(dataset / "manifest" / "000001-00000.parquet").to_pylist()
        if row["image_id"] == image_id
    )
    assert before.find(path) == image_id
    remove_images(Location(dataset), [str(image_id)])
    after = glo.load(run, images=Dataset.open(dataset))
    assert after.ids.tolist() == [i for i in before.ids.tolist() if i != image_id]
    assert len(after.images()) == len(after.reconstruct()) == len(after.ids)
    samples = after.sample(4, seed=0)
    assert image_id not in after.neighbors(samples, k=len(after.ids)).ids
    for draw in (after.reconstruct, after.images, after.codes):
        with pytest.raises(UserError, match=f"image id {image_id}"):
            draw([image_id])
    for model in (before, after):
        with pytest.raises(UserError, match="was removed from the dataset"):
            model.find(path)


def test_a_contact_sheet_shows_no_removed_image(dataset: Path) -> None:
    opened = Dataset.open(dataset)
    sheet = sample_images(Location(dataset), opened.snapshots[0], opened.config, 100)
    ids = opened.images().ids
    assert len(sheet) == len(ids)
    remove_images(Location(dataset), [str(ids[0]), str(ids[5])])
    left = {image.tobytes() for image in sample_images(Location(dataset), opened.snapshots[0], opened.config, 100)}
    live = Dataset.open(dataset).images()
    assert left == {image.tobytes() for image in live.take(np.arange(len(live.ids))).numpy()}
