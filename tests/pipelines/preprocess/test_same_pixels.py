"""Pixels that were saved anew are no second image, and files of one group are on one side of the split."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from glo_core import Dataset, UserError
from glo_core.common.digests import digest
from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from tests.helpers.preprocess_small import preprocess_small

pytestmark = pytest.mark.usefixtures("session")


def rows(dataset: Path) -> dict[str, dict[str, Any]]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((dataset / "manifest").iterdir())])
    return {row["path"].decode(): row for row in table.to_pylist()}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8))


def save_anew(image: Image.Image, folder: Path, name: str) -> list[str]:
    """The same pixels in every format without loss, with other metadata, and turned with a tag that turns them back."""
    folder.mkdir(parents=True, exist_ok=True)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "another file")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / f"{name}.png")
    image.save(folder / f"{name}-text.png", pnginfo=text, compress_level=1)
    image.save(folder / f"{name}.bmp")
    image.save(folder / f"{name}.tif", compression="tiff_lzw")
    image.save(folder / f"{name}.webp", lossless=True)
    image.convert("RGBA").save(folder / f"{name}-alpha.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / f"{name}-turned.png", exif=turned)
    return sorted(path.name for path in folder.glob(f"{name}*"))


def test_pixels_that_were_saved_anew_are_one_image_of_the_lowest_id(tmp_path: Path) -> None:
    photos, dataset = tmp_path / "photos", tmp_path / "d"
    for seed in range(40):  # Several blocks
        assert len(save_anew(picture(seed), photos, f"{seed:02d}")) == 7
    summary = preprocess_small(dataset, photos, channels=3, holdout=0.3)
    assert (summary["train"] + summary["holdout"], summary["duplicate"]) == (40, 240)
    manifest = rows(dataset)
    live = {*Dataset.open(dataset).images().ids.tolist(), *Dataset.open(dataset).held_out().ids.tolist()}
    for seed in range(40):
        copies = sorted(row["image_id"] for path, row in manifest.items() if path.startswith(f"{seed:02d}"))
        assert copies[0] in live and live.isdisjoint(copies[1:])
    source = Dataset.open(dataset).images()
    pixels = dict(zip(source.ids.tolist(), source.take(np.arange(len(source.ids))).numpy(), strict=True))
    for row in manifest.values():
        if row["image_id"] in pixels:
            assert row["pixel_hash"] == digest(pixels[row["image_id"]].tobytes())
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


def test_pixels_of_an_earlier_snapshot_are_duplicates_too(tmp_path: Path) -> None:
    photos, dataset = tmp_path / "photos", tmp_path / "d"
    photos.mkdir()
    for seed in range(4):
        picture(seed).save(photos / f"{seed}.png")
    preprocess_small(dataset, photos, channels=3)
    before = Dataset.open(dataset).images().ids.tolist()
    save_anew(picture(2), photos, "again")
    assert preprocess_small(dataset, photos, channels=3)["duplicate"] == 7
    manifest = rows(dataset)
    assert {manifest[path]["duplicate_of"] for path in manifest if path.startswith("again")} == {
        manifest["2.png"]["image_id"]
    }
    assert Dataset.open(dataset).images().ids.tolist() == before
    # What was removed does not come back in another format.
    preprocess_small(dataset, remove=("photos/3.png",), channels=3)
    picture(3).save(photos / "back.bmp")
    assert preprocess_small(dataset, photos, channels=3)["duplicate"] == 1
    # What was replaced may.
    picture(50).save(photos / "1.png")
    preprocess_small(dataset, photos, channels=3, on_change="replace", yes=True)
    picture(1).save(photos / "1 again.bmp")
    assert preprocess_small(dataset, photos, channels=3)["train"] == 1


def test_a_burst_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    photos, more, dataset = tmp_path / "photos", tmp_path / "more", tmp_path / "d"
    for folder, frames in ((photos, range(6)), (more, range(6, 9))):
        folder.mkdir()
        for patient in range(30):
            for frame in frames:
                picture(100 * patient + frame).save(folder / f"p{patient:02d}_{frame}.png")
    with tarfile.open(more / "shard.tar", "w") as archive:
        for patient in range(30):
            data = io.BytesIO()
            picture(100 * patient + 99).save(data, "PNG")
            member = tarfile.TarInfo(f"p{patient:02d}_tar.png")
            member.size = len(data.getvalue())
            archive.addfile(member, io.BytesIO(data.getvalue()))
    settings: dict[str, Any] = {"channels": 3, "holdout": 0.4, "group_by": r"(?:^|!)(p\d+)_"}
    preprocess_small(dataset, photos, **settings)
    preprocess_small(dataset, photos, more, **settings)
    table = pa.concat_tables([pq.read_table(path) for path in sorted((dataset / "manifest").iterdir())])
    splits: dict[bytes, set[str]] = {}
    for row in table.to_pylist():
        splits.setdefault((row["member"] or row["path"])[:3], set()).add(row["split"])
    assert len(splits) == 30 and all(len(sides) == 1 for sides in splits.values())
    assert 4 <= sum(sides == {"holdout"} for sides in splits.values()) <= 20
    # It is a part of what the dataset is.
    with pytest.raises(UserError, match=r"another configuration .*group_by"):
        preprocess_small(dataset, photos, **settings | {"group_by": "^(p)"})


def test_files_of_no_group_are_dealt_one_by_one(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(60):
        picture(seed).save(photos / f"{seed}.png")
    by_file = preprocess_small(tmp_path / "one", photos, channels=3, holdout=0.4)
    by_group = preprocess_small(tmp_path / "other", photos, channels=3, holdout=0.4, group_by="(patient[0-9]+)")
    assert (by_file["train"], by_file["holdout"]) == (by_group["train"], by_group["holdout"])
    assert {p: r["split"] for p, r in rows(tmp_path / "one").items()} == {
        p: r["split"] for p, r in rows(tmp_path / "other").items()
    }


@pytest.mark.parametrize(
    ("pattern", "why"), [("(", "is no regular expression"), ("[0-9]+", "has no group"), ("(?:a)", "has no group")]
)
def test_a_pattern_that_names_no_group_is_refused(pattern: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`group_by` .* {why}") as caught:
        preprocess_small(tmp_path / "d", tmp_path, group_by=pattern)
    assert "\n" not in str(caught.value)
