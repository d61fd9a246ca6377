"""Containers beside other files in one folder: what each costs, and that none costs another file."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.preprocess_fuzz_containers import MAKERS, mutated, read_whole
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import read_parts
from glo_core.dataset_format.rejection import REASONS
from tests.helpers.containers import member, png
from tests.helpers.pickled_objects import is_registered, pickled, pickled_field, register
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images


def rows(dataset: Path) -> list[dict[str, Any]]:
    parts = read_parts(Location(dataset), ["path", "member", "status", "reason", "bytes", "label"])
    return [row for part in parts for row in part.to_pylist()]


@pytest.mark.usefixtures("session")
def test_a_table_and_a_tar_beside_other_files(tmp_path: Path) -> None:
    """As in the clone of a Hugging Face dataset: rows with a place in a container and rows without in one block."""
    folder, dataset = tmp_path / "clone", tmp_path / "dataset"
    write_images(folder, 5, seed=0)
    (folder / "README.md").write_text("# Images")
    images = [{"bytes": png(n), "path": None} for n in range(7)]
    pq.write_table(pa.table({"image": images, "label": list(range(7))}), folder / "train.parquet")
    (folder / "shard.tar").write_bytes(member("a.png", png(8)) + member("b.png", png(9)) + bytes(1024))
    summary = preprocess_small(dataset, folder)
    assert (summary["files"], summary["train"], summary["reasons"]) == (15, 14, {"unknown format": 1})
    labels = {row["member"]: row["label"] for row in rows(dataset) if row["path"] == b"train.parquet"}
    assert labels == {str(n).encode(): str(n) for n in range(7)}
    assert preprocess_small(dataset, folder) == {}


@pytest.mark.usefixtures("session")
def test_a_table_that_would_run_code(tmp_path: Path) -> None:
    """With the type registered in the driver, and in workers that have imported Ray Data."""
    folder, dataset, trace = tmp_path / "images", tmp_path / "dataset", tmp_path / "it-ran"
    write_images(folder, 6, seed=1)
    values, images = pickled(trace, 6), pa.array([png(n) for n in range(6)])
    struct = pa.struct([pickled_field("bytes"), pa.field("path", pa.string())])
    structs = pa.StructArray.from_arrays([values, pa.array(["x"] * 6)], fields=list(struct))
    plain = pa.field("image", pa.binary())
    tables = {
        "image": pa.table([values], schema=pa.schema([pickled_field("image")])),
        "label": pa.table([images, values], schema=pa.schema([plain, pickled_field("label")])),
        "nested": pa.table([structs], names=["image"]),
        "beside": pa.table([images, values], schema=pa.schema([plain, pickled_field("note")])),
    }
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    register()
    try:
        preprocess_small(dataset, folder)
    finally:
        if is_registered():
            pa.unregister_extension_type("ray.data.arrow_pickled_object")
    assert not trace.exists()
    reasons = {row["path"]: row["reason"] for row in rows(dataset) if row["path"].endswith(b".parquet")}
    assert reasons == {f"{name}.parquet".encode(): "broken container" for name in ("image", "label", "nested")} | {
        b"beside.parquet": None
    }


IMAGES = [png(n) for n in range(20)]


@pytest.mark.parametrize("kind", MAKERS)
def test_mutated_containers_raise_nothing(tmp_path: Path, kind: str) -> None:
    """The first of the mutations of `benchmarks.preprocess_fuzz_containers`."""
    outcomes = set()
    for seed in range(200):
        (tmp_path / f"x.{kind}").write_bytes(mutated(kind, IMAGES, seed))
        outcomes.add(read_whole(Location(tmp_path / f"x.{kind}")))
    assert {"whole", "broken container"} <= outcomes <= {"whole", "damaged", *REASONS}


@pytest.mark.usefixtures("session")
def test_mutated_containers_beside_images_give_one_row_each(tmp_path: Path) -> None:
    folder, dataset = tmp_path / "images", tmp_path / "dataset"
    write_images(folder, 10, seed=2)
    for seed in range(40):
        for kind in MAKERS:
            (folder / f"{seed}.{kind}").write_bytes(mutated(kind, IMAGES, seed))
    preprocess_small(dataset, folder)
    manifest = rows(dataset)
    keys = [(row["path"], row["member"]) for row in manifest]
    assert len(set(keys)) == len(keys)
    assert {row["path"] for row in manifest} == {os.fsencode(p.relative_to(folder)) for p in folder.rglob("*.*")}
    assert all(row["reason"] in (None, *REASONS) for row in manifest)
    assert [row["status"] for row in manifest if row["path"].endswith(b".png")] == ["image"] * 10
    assert preprocess_small(dataset, folder) == {}
