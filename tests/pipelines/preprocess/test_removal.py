"""Law: an id that a snapshot removes is skipped by every reader, whatever older snapshot the reader works on."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from glo_core import Dataset, UserError
from glo_core.common.location import Location
from glo_core.dataset_format.snapshots import SnapshotCounts
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.removal import remove_images
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
