"""The plan of an interrupted run: it is finished first, or forgotten, and swallows no option of the next command."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.plan import make_plan
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

pytestmark = pytest.mark.usefixtures("session")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", 20, seed=0)
    return tmp_path / "photos"


def training_ids(dataset: Path) -> set[int]:
    return set(Dataset.open(dataset).images().ids.tolist())


def interrupt(dataset: Path, number: int, *, after: tuple[str, ...] = ("snapshots", "manifest", "blocks")) -> None:
    """What is left when the driver is killed: the plan, and what is not in `after`."""
    for folder in after:
        for path in (dataset / folder).glob(f"{number:06d}*"):
            path.unlink()


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in dataset.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("harm", ["damaged", "undecodable", "half done"])
def test_any_plan_that_is_not_committed_can_be_forgotten(
    harm: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    first, before = Dataset.open(dataset).digest, files(dataset)
    write_images(photos / "later", 6, seed=3)
    preprocess_small(dataset, photos)
    ids = training_ids(dataset)
    plan = dataset / "plans" / "000002.parquet"
    if harm == "half done":
        interrupt(dataset, 2, after=("snapshots",))
    else:
        interrupt(dataset, 2)
    if harm == "damaged":
        plan.write_bytes(plan.read_bytes()[:100])
        with pytest.raises(UserError, match=r"plans/000002.parquet: not a whole Parquet file .*give `discard_plan`"):
            preprocess_small(dataset, photos)
    if harm == "undecodable":
        table = pq.read_table(plan)
        pq.write_table(table.set_column(1, "source", [["nowhere"] * len(table)]), plan)
    assert preprocess_small(dataset, discard_plan=True) == {"discarded": 2}
    assert "forgot plan 2" in capsys.readouterr().out
    left = files(dataset)
    assert {name: left.get(name) for name in before} == before
    assert left.keys() - before.keys() <= {str(dataset / "stat_cache.parquet")}
    assert Dataset.open(dataset).digest == first
    # Nothing has seen the ids, which are assigned again; the dataset goes on.
    assert preprocess_small(dataset, photos)["train"] == 6
    assert training_ids(dataset) == ids
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


def test_a_first_plan_is_forgotten_with_its_configuration(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    interrupt(dataset, 1)
    preprocess_small(dataset, discard_plan=True)
    assert not (dataset / "dataset.json").exists()
    assert preprocess_small(dataset, photos, resolution=8)["train"] == 20


def test_one_command_forgets_and_lists_anew(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    write_images(photos / "later", 6, seed=3)
    preprocess_small(dataset, photos)
    interrupt(dataset, 2)
    (photos / "later" / "a" / "0000.png").unlink()
    assert preprocess_small(dataset, photos, discard_plan=True)["train"] == 5


def test_where_no_plan_is_pending_there_is_nothing_to_forget(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    with pytest.raises(UserError, match="no plan is pending"):
        preprocess_small(dataset, discard_plan=True)
    assert not (dataset / "dataset.json").exists()
    preprocess_small(dataset, photos)
    before = files(dataset)
    with pytest.raises(UserError, match="no plan is pending, so that `discard_plan` has nothing to forget"):
        preprocess_small(dataset, photos, discard_plan=True)
    assert files(dataset) == before


def test_blocks_of_a_plan_that_is_gone_are_never_taken_for_those_of_the_next(photos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "d"
    preprocess_small(dataset, photos)
    write_images(photos / "later", 6, seed=3)
    preprocess_small(dataset, photos)
    # A task of a writer that lost the dataset finishes its block after the plan was forgotten.
    late = {path: path.read_bytes() for folder in ("manifest", "blocks") for path in (dataset / folder).glob("000002*")}
    interrupt(dataset, 2)
    preprocess_small(dataset, discard_plan=True)
    (photos / "later" / "a" / "0000.png").unlink()
    config = Dataset.open(dataset).config
    _, plan = make_plan(
        Location(dataset), 2, config, [Location(photos)], retry=np.empty(0, np.int64), require_lease=lambda: None
    )
    for path, data in late.items():
        path.write_bytes(data)
    assert plan is not None and plan.rows == 5
    assert preprocess_small(dataset, photos)["files"] == 5
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))
    # The same without a plan: what is left is swept.
    for folder in ("manifest", "blocks"):
        name = next((dataset / folder).glob("000002*"))
        (dataset / folder / name.name.replace("000002", "000003")).write_bytes(name.read_bytes())
    assert preprocess_small(dataset, photos) == {}
    assert not list(dataset.glob("*/000003*"))


def test_a_pending_plan_swallows_neither_on_change_nor_retry_rejected(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glo.preprocess")
    dataset = tmp_path / "d"
    (photos / "cut.png").write_bytes((photos / "a" / "0000.png").read_bytes()[:90])
    preprocess_small(dataset, photos, allow_truncated=False)
    old = next(
        row["image_id"]
        for row in pq.read_table(dataset / "manifest" / "000001-00000.parquet").to_pylist()
        if row["path"] == b"a/0000.png"
    )
    Image.new("L", (20, 20), 9).save(photos / "a" / "0000.png")
    preprocess_small(dataset, photos)
    interrupt(dataset, 2)
    part = dataset / "manifest" / "000001-00000.parquet"
    preprocess_small(dataset, photos, on_change="replace", retry_rejected=True)
    assert old not in training_ids(dataset)
    assert "files that changed: replace, as this command says, not keep" in caplog.messages
    assert "rejected files are tried again after this plan" in caplog.messages
    # `cut.png` was tried again by a plan of its own: its only row is rejected as before, under a new id.
    assert json.loads((dataset / "snapshots" / "000003.json").read_text())["counts"]["rejected"] == 1
    assert part.exists()
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))
