"""Which resolution and channels suit images that nobody has described."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glo_core import UserError
from glo_core.common.digests import digest
from glo_core.common.location import Location
from pipelines.preprocess.autodetect import SuggestedFormat, _paths_by_hash, suggest_format
from pipelines.preprocess.reading import read_file
from pipelines.preprocess.sources import find_sources
from tests.helpers.encode_images import ramps, tiff


def write(folder: Path, *sizes: tuple[int, int], mode: str = "RGB") -> Path:
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new(mode, size).save(folder / f"{number}-{mode}.png")
    return folder


def suggested(*places: Path, tight_crop: int = 0) -> SuggestedFormat:
    return suggest_format(find_sources([Location(place) for place in places], {}), tight_crop)


@pytest.mark.parametrize(("side", "resolution"), [(3, 8), (28, 32), (27, 16), (100, 64), (112, 128), (4000, 128)])
def test_the_largest_power_of_two_that_nearly_fits_the_shorter_side(tmp_path: Path, side: int, resolution: int) -> None:
    assert suggested(write(tmp_path / "a", (side, side + 9))) == (resolution, 3)


def test_half_of_the_images_decide_and_one_in_color_makes_all_color(tmp_path: Path) -> None:
    gray = write(tmp_path / "a", (32, 32), (32, 32), (200, 200), mode="L")
    (gray / "notes.txt").write_text("no image")
    assert suggested(gray) == (32, 1)
    assert suggested(gray, write(tmp_path / "b", (32, 32))) == (32, 3)


def test_what_is_cropped_away_does_not_count(tmp_path: Path) -> None:
    assert suggested(write(tmp_path / "a", (178, 218)), tight_crop=70) == (64, 3)


def test_members_of_a_tar_are_looked_at(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("L", (16, 16)).save(data, format="PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x.png")
        info.size = len(data.getvalue())
        tar.addfile(info, io.BytesIO(data.getvalue()))
    assert suggested(tmp_path / "a.tar") == (16, 1)


def test_where_nothing_is_an_image_decoding_will_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    assert suggested(tmp_path) == (128, 3)


def test_a_source_without_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file, where image files were expected"):
        suggested(tmp_path)


def test_few_images_among_many_other_files_decide(tmp_path: Path) -> None:
    write(tmp_path, *[(40, 40)] * 12, mode="L")
    for number in range(700):
        (tmp_path / f"{number}.xmp").write_text("sidecar")
    assert suggested(tmp_path) == (32, 1)


def test_images_are_looked_for_in_as_many_listings_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.preprocess.autodetect.PATHS_AT_ONCE", 4)
    write(tmp_path, *[(40, 40)] * 3, mode="L")
    for number in range(300):
        (tmp_path / f"{number}.xmp").write_text("sidecar")
    (source,) = find_sources([Location(tmp_path)], {})
    paths = list(_paths_by_hash(source))
    assert sorted(paths) == sorted(os.fsencode(path.name) for path in tmp_path.iterdir())
    assert paths == sorted(paths, key=digest)
    assert suggested(tmp_path) == (32, 1)


def test_no_more_than_a_sample_of_many_images_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.preprocess.autodetect.SAMPLE_SIZE", 20)
    monkeypatch.setattr("pipelines.preprocess.autodetect.FILES_AT_ONCE", 10)
    write(tmp_path, *[(40, 40)] * 300, mode="L")
    read: list[bytes] = []

    def reading(base: Location, path: bytes, max_bytes: int) -> bytes:
        read.append(path)
        return read_file(base, path, max_bytes)

    monkeypatch.setattr("pipelines.preprocess.autodetect.read_file", reading)
    assert suggested(tmp_path) == (32, 1)
    assert len(read) == 20


def test_every_member_of_a_small_tar_is_looked_at(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(150):
            data = io.BytesIO()
            Image.new("RGB" if number == 149 else "L", (16, 16)).save(data, format="PNG")
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(data.getvalue())
            tar.addfile(info, io.BytesIO(data.getvalue()))
    assert suggested(tmp_path / "a.tar") == (16, 3)


def test_thumbnails_of_raw_camera_files_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, *[(64, 64)] * 5, mode="L")
    thumbnail = ramps(3, 255)[:16, :24].astype(np.int64)
    for number in range(9):
        raw = tiff(thumbnail, 8, 2, tags={254: ("I", [1]), 50706: ("B", [1, 4, 0, 0])})
        (tmp_path / f"{number}.dng").write_bytes(raw)
        (tmp_path / f"{number}.cr2").write_bytes(raw[:8] + b"CR\x02\0" + raw[12:])
    assert suggested(tmp_path) == (64, 1)
