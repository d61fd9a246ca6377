"""What this project wrote is never read as input, wherever it lies."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glo_core import UserError
from glo_core.common.location import Location
from pipelines.preprocess.outputs import contains, require_no_output
from pipelines.preprocess.sources import find_sources
from pipelines.preprocess.walk import list_files
from tests.helpers.paths import ROOT
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

GOLDEN = ROOT / "tests" / "golden" / "v1"


def copy_of(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", 6, seed=0)
    return tmp_path / "photos"


def refusal(dataset: Path | str, *inputs: Path | str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        preprocess_small(dataset, *inputs, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_dataset_inside_an_input_is_refused_and_leaves_no_trace(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(photos)
    (photos / "out").mkdir()
    (tmp_path / "into").symlink_to(photos / "out")
    monkeypatch.chdir(tmp_path)
    for dataset, folder in (
        (photos / "d", photos),
        (photos, photos),
        (photos / "x" / "y", tmp_path),
        (tmp_path / "link" / "d", photos),
        (photos / "d", tmp_path / "link"),
        (tmp_path / "into" / "d", photos),
        (Path("photos/d"), Path("photos")),
        (Path("photos/../photos/d"), Path("photos")),
        (photos / "d", f"file://{photos}"),
        (f"file://{photos}/d", photos),
        (photos / "d", Path()),
    ):
        assert "so that its own files would become input" in refusal(dataset, folder) or dataset == photos
    assert sorted(path.name for path in photos.iterdir()) == ["a", "b", "out"]


def test_an_input_inside_a_dataset_or_a_run_is_refused(tmp_path: Path) -> None:
    copy_of(GOLDEN, tmp_path / "old")
    (tmp_path / "link").symlink_to(tmp_path / "old" / "dataset" / "manifest")
    dataset, run, d = tmp_path / "old" / "dataset", tmp_path / "old" / "run", tmp_path / "d"
    (run / "run.json").write_text(json.dumps({"format": "glo-run", "format_version": 1}))
    write_images(run / "grids" / "63", 2, seed=0)
    for folder in (
        dataset,
        dataset / "manifest",
        dataset / "manifest" / "000001-00000.parquet",
        tmp_path / "link",
        run,
        run / "grids" / "63",
    ):
        assert "holds outputs of this project" in refusal(d, folder)
    assert "lies in `dataset`" in refusal(dataset, dataset / "manifest", resolution=8, channels=3)
    assert not d.exists()


@pytest.mark.usefixtures("session")
def test_folders_of_outputs_below_an_input_are_not_entered(photos: Path, tmp_path: Path) -> None:
    copy_of(GOLDEN, photos / "old")
    (photos / "old" / "run" / "run.json").write_text(json.dumps({"format": "glo-run", "format_version": 1}))
    artifacts = photos / "old" / "mlartifacts" / ("0123456789abcdef" * 2) / "artifacts"
    for folder in (photos / "old" / "run" / "grids" / "63", artifacts / "grids", artifacts / "images"):
        write_images(folder, 2, seed=1)
    (photos / "linked").symlink_to(photos / "old" / "run")
    # Files of these names that are somebody else's are no marks.
    (photos / "a" / "dataset.json").write_text('{"labels": [["0000.png", 3]]}')
    (photos / "b" / "run.json").write_text("not JSON")
    write_images(photos / "artifacts", 2, seed=2)
    summary = preprocess_small(tmp_path / "d", photos)
    assert (summary["train"], summary["reasons"]) == (8, {"unknown format": 2})


def listed(folder: Path) -> set[str]:
    [source] = find_sources([Location(folder)], {})
    return {os.fsdecode(path) for files in list_files(source) for path in files.paths}


def test_links_into_outputs_are_not_followed(photos: Path, tmp_path: Path) -> None:
    copy_of(GOLDEN, tmp_path / "old")
    run, artifacts = tmp_path / "old" / "run", tmp_path / "mlartifacts" / "0" / ("0123456789abcdef" * 2) / "artifacts"
    (run / "run.json").write_text(json.dumps({"format": "glo-run", "format_version": 1}))
    for folder in (run / "grids" / "63", artifacts / "grids", tmp_path / "far" / "deep"):
        write_images(folder, 2, seed=1)
    before = listed(photos)
    (tmp_path / "far" / "deep" / "run").symlink_to(run / "grids")
    for name, target in {
        "g": run / "grids",
        "g63": run / "grids" / "63" / "a",
        "m": tmp_path / "old" / "dataset" / "manifest",
        "art": artifacts,
        "artgrids": artifacts / "grids",
        "mlflow_run": artifacts.parent,
        "grid.png": run / "grids" / "63" / "a" / "0000.png",
        "sheet.png": artifacts / "grids" / "b" / "0001.png",
        "twice.png": photos / "grid.png",
        "twice": photos / "g",
    }.items():
        (photos / name).symlink_to(target)
    assert listed(photos) == before
    # Links to anything else are followed as ever.
    (photos / "z").symlink_to(tmp_path / "far")
    (photos / "one.png").symlink_to(tmp_path / "far" / "deep" / "a" / "0000.png")
    (photos / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    added = {"one.png", "nowhere.png", "z/deep/a/0000.png", "z/deep/b/0001.png"}
    assert listed(photos) == before | added


def test_inputs_and_lines_below_artifacts_of_mlflow_or_links_to_outputs_are_refused(
    photos: Path, tmp_path: Path
) -> None:
    artifacts = tmp_path / "mlartifacts" / "0" / ("0123456789abcdef" * 2) / "artifacts"
    write_images(artifacts / "grids", 2, seed=1)
    for folder in (artifacts, artifacts / "grids"):
        assert "holds outputs of this project" in refusal(tmp_path / "d", folder)
    (photos / "sheet.png").symlink_to(artifacts / "grids" / "a" / "0000.png")
    source = find_sources([Location(photos)], {})[0]
    require_no_output(Location(tmp_path / "d"), source, [b"a/0000.png"])
    with pytest.raises(UserError, match=r"the line 'sheet\.png' names an output"):
        require_no_output(Location(tmp_path / "d"), source, [b"a/0000.png", b"sheet.png"])


@pytest.mark.parametrize("name", ["run.json", "dataset.json"])
def test_a_pipe_or_a_device_of_the_name_of_a_mark_is_no_mark(name: str, photos: Path) -> None:
    (photos / "b" / name).symlink_to("/dev/zero")
    os.mkfifo(photos / "a" / name)
    command = [sys.executable, "-c", "import sys; from pipelines.preprocess.outputs import is_output"]
    command[-1] += "; print(is_output(sys.argv[1]), is_output(sys.argv[2]))"
    # A process of its own, since it would wait for ever for somebody who writes to the pipe
    ran = subprocess.run([*command, photos / "a", photos / "b"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.stdout.split() == ["False", "False"], ran.stderr


@pytest.mark.usefixtures("session")
def test_a_root_above_its_input_is_as_good_as_any(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_images(root / "photos", 6, seed=0)
    tracking = {"tracking_uri": f"sqlite:///{root}/mlflow.db"}  # As is the default
    assert preprocess_small(root / "dataset", root / "photos", **tracking)["train"] == 6
    assert preprocess_small(root / "dataset", root / "photos") == {}
    # The whole root is refused, since the dataset would be entered.
    assert "lies in `input`" in refusal(root / "dataset", root)
    # Another dataset takes the images of the root, and neither its blocks nor the contact sheet in MLflow.
    assert (root / "mlflow.db").exists()
    assert len(list((root / "mlartifacts").rglob("*.png"))) >= 1
    summary = preprocess_small(tmp_path / "other" / "dataset", root)
    assert (summary["train"], summary["reasons"]) == (6, {"unknown format": 1})  # The database


@pytest.mark.usefixtures("session")
def test_a_line_of_a_list_that_names_an_output_is_refused(photos: Path, tmp_path: Path) -> None:
    copy_of(GOLDEN, tmp_path / "old")
    dataset, listing = tmp_path / "d", tmp_path / "list.txt"
    listing.write_text("photos/a/0000.png\nold/dataset/manifest/000001-00000.parquet\n")
    assert "the line 'old/dataset/manifest/000001-00000.parquet' names an output" in refusal(dataset, listing)
    listing.write_text("photos/a/0000.png\n")
    assert preprocess_small(dataset, listing)["train"] == 1
    listing.write_text("photos/a/0000.png\nd/manifest/000001-00000.parquet\n")
    assert "names an output" in refusal(dataset, listing)


def test_places_in_a_store_are_compared_by_their_folders() -> None:
    outer = Location("s3://bucket/photos?region=eu&scheme=http")
    for inner, inside in {
        "s3://bucket/photos": True,
        "s3://bucket/photos/": True,
        "s3://bucket//photos/sets/d?region=us": True,
        "s3://bucket/photos2": False,
        "s3://bucket/other/photos": False,
        "s3://other/photos/d": False,
        "gs://bucket/photos/d": False,
        "/bucket/photos/d": False,
    }.items():
        assert contains(outer, Location(inner)) is inside, inner
    assert contains(Location("s3://bucket"), Location("s3://bucket/a/b"))
    assert not contains(Location("s3://bucket/a/b"), Location("s3://bucket/a"))


@pytest.mark.usefixtures("session")
def test_a_bucket_is_no_exception(tmp_path: Path, bucket: str) -> None:
    data = tmp_path / "p.png"
    Image.new("L", (20, 20), 7).save(data)
    place = Location(bucket.replace("FOLDER", "nested/photos"))
    (place / "a.png").put(data)
    tracking = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    assert "lies in `input`" in refusal(str(place / "d"), str(place), **tracking)
    for path in GOLDEN.rglob("*"):
        if path.is_file():
            Location(bucket.replace("FOLDER", f"nested/photos/old/{path.relative_to(GOLDEN)}")).put(path)
    assert "holds outputs" in refusal(tmp_path / "d", str(place / "old" / "dataset" / "manifest"))
    assert "holds outputs" in refusal(tmp_path / "d", str(place / "old" / "dataset"))
    (place / "old" / "run" / "run.json").put(b'{"format": "glo-run", "format_version": 1}')
    (place / "old" / "run" / "grids" / "1.png").put(data)
    summary = preprocess_small(tmp_path / "d", str(place))
    assert (summary["found"], summary["train"]) == (1, 1)
