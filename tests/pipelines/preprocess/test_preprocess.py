"""Preprocessing of real files on a real Ray head, read back with plain pyarrow."""

import json
import logging
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.file_lock import file_lock
from tests.conftest import Job
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

CONFIG = {"resolution": 16, "channels": 1, "code_shards": 8, "holdout": 0.2}


def prepare(dataset: Path, *folders: Path, **changes: Any) -> dict[str, Any]:
    return preprocess_small(dataset, *folders, **CONFIG | changes)


def manifest(dataset: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((dataset / "manifest").glob("*.parquet"))]
    rows = pa.concat_tables(tables).to_pylist()
    return {f"{row['source']}/{row['path'].decode()}": row for row in rows}


def block_images(dataset: Path) -> dict[int, np.ndarray]:
    """Every image of every block, by id, read without this project."""
    images = {}
    for path in sorted((dataset / "blocks").glob("*.arrow")):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        assert reader.num_record_batches == 9
        for shard in range(9):
            batch = reader.get_batch(shard).to_pydict()
            for image_id, data in zip(batch["image_id"], batch["image"], strict=True):
                assert shard == 8 or image_id % 8 == shard
                images[image_id] = np.frombuffer(data, np.uint8).reshape(16, 16)
    return images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("folders")
    first, second = place / "first", place / "second"
    write_images(first, 600, seed=0)
    write_images(second, 60, seed=1)
    (first / "a" / "broken.png").write_bytes((first / "a" / "0000.png").read_bytes()[:70])
    (first / "notes.txt").write_text("not an image")
    (first / "empty.jpg").touch()
    (first / ".hidden.png").write_bytes((first / "a" / "0000.png").read_bytes())
    (first / "b" / "copy.png").write_bytes((first / "a" / "0002.png").read_bytes())
    (second / "a" / "old.png").write_bytes((first / "a" / "0004.png").read_bytes())
    (first / "a" / "umlaut-ä\n.png").write_bytes(b"")
    Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (20, 1))).save(first / "wide.gif")
    return {"first": first, "second": second, "dataset": place / "dataset"}


@pytest.mark.usefixtures("session")
def test_folders_become_a_dataset_that_grows(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    dataset = folders["dataset"]
    summary = prepare(dataset, folders["first"])
    assert (summary["files"], summary["unchanged"], summary["duplicate"], summary["rejected"]) == (606, 0, 1, 4)
    shown = capsys.readouterr().out
    assert "606 new: " in shown
    assert "rejected 2: empty" in shown
    rows, images = manifest(dataset), block_images(dataset)
    assert sorted(row["image_id"] for row in rows.values()) == list(range(606))
    reasons = {name.split("/", 1)[1]: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert reasons["notes.txt"] == "unknown format"
    assert reasons["empty.jpg"] == reasons["a/umlaut-ä\n.png"] == "empty"
    assert reasons["a/broken.png"] == "truncated"
    row = rows["first/a/0006.png"]
    assert (row["label"], row["width"], row["height"], row["member"]) == ("a", 20, 20, None)
    with Image.open(folders["first"] / "a" / "0006.png") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images[row["image_id"]], expected)
    held_out = [row for row in rows.values() if row["split"] == "holdout"]
    assert 0.1 < len(held_out) / 606 < 0.3
    # Of equal bytes the lowest id wins.
    twins = sorted((rows["first/a/0002.png"], rows["first/b/copy.png"]), key=lambda r: r["image_id"])
    opened = Dataset.open(dataset)
    ids = {*opened.images().ids.tolist(), *opened.held_out().ids.tolist()}
    assert twins[0]["image_id"] in ids and twins[1]["image_id"] not in ids

    # The same again: nothing.
    assert prepare(dataset, folders["first"]) == {}
    assert "nothing new" in capsys.readouterr().out

    # A second folder is appended: the first one's ids and blocks stay.
    digest, before = opened.digest, {name: row["image_id"] for name, row in rows.items()}
    summary = prepare(dataset, folders["first"], folders["second"])
    assert (summary["files"], summary["unchanged"]) == (61, 606)
    rows = manifest(dataset)
    assert {name: rows[name]["image_id"] for name in before} == before
    snapshot = json.loads((dataset / "snapshots" / "000002.json").read_text())
    assert snapshot["parent"] == digest
    old = rows["second/a/old.png"]["image_id"]
    assert (rows["second/a/old.png"]["status"], old in block_images(dataset)) == ("duplicate", False)
    assert rows["second/a/old.png"]["duplicate_of"] == rows["first/a/0004.png"]["image_id"]
    assert Dataset.open(dataset).at(digest).digest == digest


@pytest.mark.usefixtures("session")
def test_an_interrupted_run_goes_on_to_the_digest_of_the_same_files_anywhere(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glo.preprocess")
    moved, dataset = tmp_path / "elsewhere" / "first", tmp_path / "d"
    shutil.copytree(folders["first"], moved)
    whole = prepare(dataset, moved)["digest"]
    assert whole == Dataset.open(folders["dataset"]).snapshots[0].digest
    blocks = {path.name: path.read_bytes() for path in (dataset / "blocks").iterdir()}
    assert len(blocks) > 1
    # What is left when the driver is killed between two blocks: the plan, some blocks, no snapshot.
    for name in ("snapshots/000001.json", "manifest/000001-00001.parquet", "blocks/000001-00001.arrow"):
        (dataset / name).unlink()
    with pytest.raises(UserError, match="preprocessing has not finished"):
        Dataset.open(dataset)
    prepare(dataset, moved)
    assert "going on with plan 000001 of 606 files" in caplog.messages
    assert Dataset.open(dataset).digest == whole
    assert {path.name: path.read_bytes() for path in (dataset / "blocks").iterdir()} == blocks


def test_a_folder_without_an_image_leaves_no_trace(job: Job, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    done = job("preprocess", "--input", tmp_path / "texts", "--dataset", tmp_path / "d", "--resolution", 16)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"preprocess: error: --input (={tmp_path / 'texts'}): none of its 1 new files is an image "
        "(1 unknown format); give a folder of image files"
    )
    assert "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "d").rglob("*") if path.is_file()} == {".lock"}


@pytest.mark.usefixtures("session")
def test_a_folder_without_an_image_costs_the_others_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"none of its 1 new files is an image .*the other inputs are in the dataset"):
        prepare(tmp_path / "d", folders["second"], tmp_path / "texts")
    assert Dataset.open(tmp_path / "d").num_train > 40
    # A stray file in a folder that has images is a line of the summary, not an error.
    stray = tmp_path / "stray"
    write_images(stray, 10, seed=7)
    prepare(tmp_path / "d", stray)
    (stray / "notes.txt").write_text("a")
    assert prepare(tmp_path / "d", stray)["rejected"] == 1


@pytest.mark.usefixtures("session")
def test_a_full_disk_is_one_line_and_what_is_finished_stays(folders: dict[str, Path], tmp_path: Path) -> None:
    small, database = tmp_path / "small", f"sqlite:///{tmp_path}/mlflow.db"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system to fill needs root")
    try:
        with pytest.raises(UserError, match=r"(blocks|manifest)/000001-\d+\.\w+: no space left on device; free some"):
            prepare(small / "d", folders["first"], tracking_uri=database)
        finished = sorted(path.name for path in (small / "d" / "manifest").iterdir())
        subprocess.run(["mount", "-o", "remount,size=50m", small], check=True)
        assert prepare(small / "d", folders["first"], tracking_uri=database)["files"] == 606
        assert set(finished) <= {path.name for path in (small / "d" / "manifest").iterdir()}
    finally:
        subprocess.run(["umount", small], check=True)


def test_mistakes_are_one_line_and_touch_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").touch()

    def attempt(folder: Path, dataset: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            prepare(dataset, folder, **changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "missing, where a folder" in attempt(tmp_path / "no", tmp_path / "d")
    assert "a file, where a folder" in attempt(tmp_path / "file", tmp_path / "d")
    assert "holds no file" in attempt(tmp_path / "nothing", tmp_path / "d")
    grown = folders["dataset"]
    assert "another configuration (resolution: 16 -> 32)" in attempt(folders["first"], grown, resolution=32)
    with file_lock(grown):
        assert "in use by process" in attempt(folders["first"], grown)
    plan = grown / "plans" / "000002.parquet"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:100])
    assert "plans/000002.parquet: not a whole Parquet file" in attempt(folders["first"], grown)
    plan.write_bytes(whole)
