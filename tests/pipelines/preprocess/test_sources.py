"""Tar shards, Parquet tables, lists of paths and an S3 server as sources; the dataset itself in a bucket."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glo_core import Dataset, UserError
from glo_core.common.arrays import UInt8Array
from glo_core.common.location import Location
from pipelines.config import InspectJob
from pipelines.inspect_dataset import inspect_dataset
from pipelines.preprocess.list_lines import lines_of_list
from pipelines.preprocess.sources import find_sources
from pipelines.preprocess.writer_lock import exclusive_writer
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.processes import free_port
from tests.helpers.write_images import write_images


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)


def rows(dataset: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(p) for p in sorted((dataset / "manifest").iterdir())]).to_pylist()


def images(dataset: Any) -> dict[int, bytes]:
    source = Dataset.open(dataset).images()
    pixels = source.take(np.arange(len(source.ids))).numpy()
    return {int(i): p.tobytes() for i, p in zip(source.ids, pixels, strict=True)}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.usefixtures("session")
def test_tar_shards_give_their_members_with_labels_and_grow_member_by_member(tmp_path: Path) -> None:
    shards, dataset = tmp_path / "shards", tmp_path / "d"
    shards.mkdir()
    members = {f"{n:04d}.png": png(n) for n in range(6)} | {f"{n:04d}.cls": str(n % 3).encode() for n in range(6)}
    write_tar(shards / "0.tar", members | {"0000.json": b"{}", "sub/x.jpg": b"\xff\xd8\xff broken"})
    write_tar(shards / "1.tar", {"a.png": png(3), "b.png": png(10)})  # The first is a duplicate.
    whole = (shards / "1.tar").read_bytes()
    (shards / "2.tar").write_bytes(b"no tar at all" * 100)
    write_tar(shards / "3.tar", {"text.txt": b"no image"})
    summary = preprocess_small(dataset, shards)
    assert (summary["found"], summary["files"], summary["train"], summary["duplicate"]) == (4, 11, 7, 1)
    assert summary["reasons"] == {"truncated": 1, "broken container": 1, "no image inside": 1}
    by_name = {(row["path"], row["member"]): row for row in rows(dataset)}
    row = by_name[b"0.tar", b"0004.png"]
    assert (row["label"], row["bytes"]) == ("1", len(png(4)))
    assert images(dataset)[row["image_id"]] == pixels_of(4).tobytes()
    assert preprocess_small(dataset, shards) == {}
    # A shard rewritten with one more member: the others are recognized by their bytes.
    write_tar(shards / "1.tar", {"a.png": png(3), "b.png": png(10), "c.png": png(11)})
    assert whole != (shards / "1.tar").read_bytes()
    summary = preprocess_small(dataset, shards)
    assert (summary["files"], summary["train"], summary["changed"], summary["unchanged"]) == (1, 1, 0, 3)
    assert preprocess_small(dataset, shards) == {}
    # The id of a member is that of its name, whichever input it came through.
    alone = tmp_path / "alone"
    assert preprocess_small(alone, shards / "0.tar")["train"] == 6
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))


@pytest.mark.usefixtures("session")
def test_a_table_as_hugging_face_stores_it(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(20)] + [{"bytes": None, "path": "gone.png"}],
            "label": [n % 2 for n in range(21)],
        }
    )
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=7)
    dataset = tmp_path / "d"
    summary = preprocess_small(dataset, tmp_path / "train.parquet")
    assert (summary["files"], summary["train"], summary["reasons"]) == (21, 20, {"empty": 1})
    by_member = {row["member"]: row for row in rows(dataset)}
    assert by_member[b"13"]["label"] == "1"
    assert images(dataset)[by_member[b"13"]["image_id"]] == pixels_of(13).tobytes()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"/text\.parquet\): none of its 1 new files is an image \(1 no image inside\)"):
        preprocess_small(tmp_path / "other", tmp_path / "text.parquet")


@pytest.mark.usefixtures("session")
def test_a_list_names_files_anywhere(tmp_path: Path) -> None:
    write_images(tmp_path / "far", 4, seed=0, side=16)
    (tmp_path / "near.png").write_bytes(png(1))
    lines = ["near.png", "near.png", str(tmp_path / "far" / "a" / "0000.png"), "nowhere.png", "far", ""]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    summary = preprocess_small(tmp_path / "d", tmp_path / "list.txt")
    assert (summary["files"], summary["train"], summary["reasons"]) == (4, 2, {"missing": 1, "irregular": 1})
    assert preprocess_small(tmp_path / "d", tmp_path / "list.txt") == {}
    (tmp_path / "nowhere.png").write_bytes(png(2))
    assert preprocess_small(tmp_path / "d", tmp_path / "list.txt")["train"] == 1


ODD = ["a#1.png", "what?.png", "a?region=x.png", "a%20b.png", "x y.png", "a&b=c.png", "#", "é.png"]
"""Names of files that a URI could misread"""


@pytest.mark.usefixtures("session")
def test_names_and_lists_that_a_uri_could_misread(tmp_path: Path) -> None:
    folder = tmp_path / "my photos#1?x=%41"
    folder.mkdir()
    for number, name in enumerate(ODD):
        (folder / name).write_bytes(png(number))
    assert preprocess_small(tmp_path / "d", folder)["train"] == len(ODD)
    assert preprocess_small(tmp_path / "d", folder.as_uri()) == {}
    assert preprocess_small(tmp_path / "d", folder.as_uri().replace("file://", "file://localhost")) == {}
    lines = [(folder / name).as_uri() for name in ODD[:4]] + [str(folder / name) for name in ODD[4:]]
    lines += ["://", "nowhere\ud800.png"]
    # As Windows writes it: a byte order mark, and CRLF.
    text = "\r\n".join(lines).encode("utf-8-sig", errors="surrogatepass")
    (tmp_path / "list.txt").write_bytes(text)
    summary = preprocess_small(tmp_path / "e", tmp_path / "list.txt")
    assert (summary["train"], summary["rejected"]) == (len(ODD), 2), summary["reasons"]
    (tmp_path / "host.txt").write_text("file://otherhost/a.png")
    with pytest.raises(UserError, match=r"host\.txt\): line 1: file://otherhost/a\.png: names the host 'otherhost'"):
        preprocess_small(tmp_path / "f", tmp_path / "host.txt")
    for code in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "wide.txt").write_bytes("\n".join(lines[:2]).encode(code))
        with pytest.raises(UserError, match=r"wide\.txt\): is in UTF-16, where a list in UTF-8 was expected"):
            preprocess_small(tmp_path / "f", tmp_path / "wide.txt")
        assert not (tmp_path / "f" / "dataset.json").exists()


# ---------------------------------------------------------------- S3


def upload(bucket: str, folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (Location(bucket.replace("FOLDER", folder)) / name).put(data)


@pytest.mark.usefixtures("session")
def test_images_and_dataset_in_a_bucket(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upload(bucket, "photos", {f"{'ab'[n % 2]}/{n}.png": png(n) for n in range(30)} | {".hidden": b"", "t.txt": b"t"})
    source, dataset = bucket.replace("FOLDER", "photos"), bucket.replace("FOLDER", "sets/one")
    tracking = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    summary = preprocess_small(dataset, source, **tracking)
    assert (summary["files"], summary["train"], summary["reasons"]) == (31, 30, {"unknown format": 1})
    assert preprocess_small(dataset, source, **tracking) == {}
    # The same files in a folder give the same digest.
    local = tmp_path / "photos"
    for n in range(30):
        (local / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        (local / "ab"[n % 2] / f"{n}.png").write_bytes(png(n))
    (local / "t.txt").write_text("t")
    assert preprocess_small(tmp_path / "d", local)["digest"] == summary["digest"]
    assert images(dataset) == images(tmp_path / "d")
    # A rank reads its own shards of a remote dataset.
    two_shards = Dataset.open(dataset).images([1, 3])
    assert set(two_shards.ids % 4) == {1, 3} and len(two_shards.ids) == sum(i % 4 in (1, 3) for i in images(dataset))
    # What is new is appended; the whole verifies; one image comes out as a file.
    upload(bucket, "photos", {"b/new.png": png(99)})
    assert preprocess_small(dataset, source, **tracking)["train"] == 1
    inspect_dataset(InspectJob(dataset=Location(dataset), verify=True))
    assert "verified" in capsys.readouterr().out
    inspect_dataset(InspectJob(dataset=Location(dataset), export="photos/b/new.png", output=tmp_path))
    with Image.open(capsys.readouterr().out.strip()) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels_of(99))


@pytest.mark.usefixtures("session")
def test_a_tar_shard_and_a_list_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {f"{n}.png": png(n) for n in range(5)})
    upload(bucket, "shards", {"s.tar": (tmp_path / "s.tar").read_bytes(), "one.png": png(77)})
    shard = str(Location(bucket.replace("FOLDER", "shards")) / "one.png")
    (tmp_path / "list.txt").write_text(f"{shard}\n")
    assert preprocess_small(tmp_path / "d", bucket.replace("FOLDER", "shards"), tmp_path / "list.txt")["train"] == 6


@pytest.mark.usefixtures("session")
def test_keys_of_a_bucket_have_any_letters(bucket: str, tmp_path: Path) -> None:
    upload(bucket, "odd/a#b?c=1", {name: png(number) for number, name in enumerate(ODD)})
    folder = Location(bucket.replace("FOLDER", "odd")) / "a#b?c=1"
    assert preprocess_small(tmp_path / "d", str(folder))["train"] == len(ODD)
    assert {row["path"].decode() for row in rows(tmp_path / "d")} == set(ODD)
    assert {row["source"] for row in rows(tmp_path / "d")} == {"a#b?c=1"}
    assert preprocess_small(tmp_path / "d", str(folder)) == {}
    (tmp_path / "list.txt").write_text("\n".join(str(folder / name) for name in ODD))
    summary = preprocess_small(tmp_path / "d", tmp_path / "list.txt", list_stores=(folder,))
    assert (summary["duplicate"], summary["rejected"]) == (len(ODD), 0)


def test_a_lease_in_a_bucket_keeps_others_out_and_a_dead_holders_runs_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.preprocess.writer_lock.RENEWED_EVERY_S", 0.5)
    monkeypatch.setattr("pipelines.preprocess.writer_lock.EXPIRES_AFTER_S", 2.0)
    monkeypatch.setattr("pipelines.preprocess.writer_lock.SETTLES_AFTER_S", 0.1)
    dataset = Location(bucket.replace("FOLDER", "leased"))
    with exclusive_writer(dataset), pytest.raises(UserError, match="in use by process"), exclusive_writer(dataset):
        pass
    assert not (dataset / ".lock").exists()
    (dataset / ".lock").put(b'{"holder": "process 1 on gone", "token": "t", "renewed": 0}')
    with exclusive_writer(dataset):
        assert (dataset / ".lock").exists()


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    for place in ("nowhere://bucket/x", f"s3://b/x?endpoint_override=127.0.0.1:{free_port()}&scheme=http"):
        environment = os.environ | {"AWS_MAX_ATTEMPTS": "1", "AWS_RETRY_MODE": "standard"}
        command = [sys.executable, "-m", "jobs.preprocess", "--input", place, "--dataset", str(tmp_path / "d")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


OTHER_STORES = (
    "s3://other/x.png",
    "s3://bucket/x.png",  # The same name at another endpoint
    "s3://bucket/x.png?endpoint_override=evil.example:9000&scheme=http",
    "gs://bucket/x.png",
    "http://169.254.169.254/latest/x.png",
)


@pytest.mark.parametrize("line", OTHER_STORES)
def test_a_line_of_a_list_names_no_store_that_the_command_does_not(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"x.png\n{line}\n")
    with pytest.raises(UserError, match=r"^`input` \(=.*list\.txt\): line 2 names .*add `list_stores` '") as caught:
        preprocess_small(tmp_path / "d", tmp_path / "list.txt")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "d" / "dataset.json").exists()


SECRET_LINES = (
    "s3://KEY:HUNTER2@bucket/x",
    "s3://b/x?secret_key=HUNTER2",
    "s3://K:HUNTER2@[b/x",
    "\ts3://AKIAKEY:HUNTER2@bucket/x.png",
    " http://user:HUNTER2@h/x",
    "\N{NO-BREAK SPACE}s3://KEY:HUNTER2@bucket/x",
    "\N{ZERO WIDTH SPACE}s3://KEY:HUNTER2@bucket/x",
    "\f s3://KEY%3AHUNTER2%40bucket/x",
    "'s3://KEY%253AHUNTER2%2540bucket/x'",
    '"https://HUNTER2@host/x.png"',
    "image = https://host/x.png?token=HUNTER2",
    "file://user:HUNTER2@host/x.png",
    "/mirror/http://user:HUNTER2@host/x.png",
)


@pytest.mark.parametrize("line", SECRET_LINES)
def test_a_line_of_a_list_holds_no_secret(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"^`input` \(=.*list\.txt\): line 1") as caught:
        preprocess_small(tmp_path / "d", tmp_path / "list.txt")
    assert "HUNTER2" not in str(caught.value)
    assert not (tmp_path / "d" / "dataset.json").exists()


def test_white_space_before_a_uri_is_none_of_it_and_that_of_a_name_stays(tmp_path: Path) -> None:
    lines = [" a.png", "b.png ", "\t file:///c.png", " ", "./x://d.png", " /e://f.png", "\N{EM SPACE}file:///g h.png "]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    [source] = find_sources([Location(tmp_path / "list.txt")], {})
    expected = [" a.png", "b.png ", "file:///c.png", "./x://d.png", " /e://f.png", "file:///g h.png "]
    assert [os.fsdecode(line) for line in lines_of_list(source)] == expected
    # Azure's container, which is no secret, stands where others have a user.
    (tmp_path / "list.txt").write_text(" abfs://container@account.dfs.core.windows.net/x.png")
    with pytest.raises(UserError, match=r"line 1 names abfs://container@account.dfs.core.windows.net, a store that"):
        list(lines_of_list(source))


@pytest.mark.usefixtures("session")
def test_a_list_in_a_store_names_its_own_store_and_no_file_of_this_machine(bucket: str, tmp_path: Path) -> None:
    one = Location(bucket.replace("FOLDER", "listed")) / "one.png"
    (tmp_path / "secret.png").write_bytes(png(3))
    local, tracking = f"file://{tmp_path}/secret.png", {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    upload(bucket, "listed", {"one.png": png(1), "own.txt": f"{one}\n".encode(), "local.txt": local.encode()})
    folder = Location(bucket.replace("FOLDER", "listed"))
    assert preprocess_small(tmp_path / "d", str(folder / "own.txt"), **tracking)["train"] == 1
    with pytest.raises(UserError, match=r"local\.txt.*: line 1 names a file of this machine"):
        preprocess_small(tmp_path / "e", str(folder / "local.txt"))
    (tmp_path / "here.txt").write_text(f"{one}\n{local}\n")
    stores = (Location(bucket.replace("/FOLDER", "")),)
    assert preprocess_small(tmp_path / "f", tmp_path / "here.txt", list_stores=stores)["train"] == 2


def test_a_folder_of_any_letters_has_its_name_in_an_ascii_locale(tmp_path: Path) -> None:
    folder = tmp_path / "Übergröße"
    folder.mkdir()
    code = (
        "import sys; from glo_core.common.location import Location; from pipelines.preprocess.sources import *; "
        "print(ascii(find_sources([Location(sys.argv[1])], {})[0].name))"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code, folder], env=os.environ | ascii_locale, capture_output=True, text=True
    )
    assert ran.stdout.strip() == ascii("Übergröße"), ran.stderr
