"""Each record of a dataset, damaged: one line that names the file, and nothing is deleted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glo_core import Dataset
from glo_core.common.errors import DatasetError
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import read_parts
from pipelines.preprocess.config import PreprocessJob
from pipelines.preprocess.file_index import FileStats, read_stat_cache, update_stat_cache
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import open_plans
from tests.helpers.paths import ROOT

Values = dict[str, Any]


def write_json(path: Path, change: Callable[[Values], Values]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def write_parquet(path: Path, change: Callable[[Values], Values]) -> None:
    table = pq.read_table(path)
    values = change(json.loads(table.schema.metadata[b"glo"]))
    pq.write_table(table.replace_schema_metadata({"glo": json.dumps(values)}), path)


def write_arrow(path: Path, change: Callable[[Values], Values]) -> None:
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    values = change({key.decode(): value.decode() for key, value in table.schema.metadata.items()})
    table = table.replace_schema_metadata({key: str(value) for key, value in values.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)


class Kind(NamedTuple):
    name: str
    required: str
    """A key without which it cannot be read"""
    change: Callable[[Path, Callable[[Values], Values]], None]
    read: Callable[[Path], object]


KINDS = {
    "dataset": Kind("dataset.json", "config", write_json, Dataset.open),
    "snapshot": Kind("snapshots/000001.json", "digest", write_json, Dataset.open),
    "plan": Kind("plans/000001.parquet", "stats", write_parquet, lambda path: open_plans(Location(path))),
    "manifest": Kind(
        "manifest/000001-00000.parquet",
        "block",
        write_parquet,
        lambda path: list(read_parts(Location(path), ["image_id"])),
    ),
    "block": Kind("blocks/000001-00000.arrow", "format_version", write_arrow, lambda path: Dataset.open(path).images()),
    "stat cache": Kind(
        "stat_cache.parquet", "format_version", write_parquet, lambda path: read_stat_cache(Location(path))
    ),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "golden" / "v1" / "dataset", tmp_path / "dataset")
    stats = FileStats(b"k" * 16, np.array([7]), np.array([9]))
    update_stat_cache(Location(tmp_path / "dataset"), [stats])
    return tmp_path / "dataset"


def files(dataset: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in dataset.rglob("*") if path.is_file()}


def refusal(dataset: Path, kind: Kind) -> str:
    """The one line that reading a damaged dataset gives."""
    before = files(dataset)
    with pytest.raises(DatasetError) as caught:
        kind.read(dataset)
    assert files(dataset) == before
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{dataset / kind.name}: ")
    return message


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_whole_record_is_read(kind: Kind, dataset: Path) -> None:
    kind.change(dataset / kind.name, lambda values: values)
    if kind.change is not write_arrow:  # Writing a block anew joins its record batches.
        kind.read(dataset)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_missing_key_is_named(kind: Kind, dataset: Path) -> None:
    kind.change(dataset / kind.name, lambda values: {k: v for k, v in values.items() if k != kind.required})
    assert kind.required in refusal(dataset, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_version_that_is_no_number_is_named(kind: Kind, dataset: Path) -> None:
    # A block's version is text anyway.
    version = "two" if kind.change is write_arrow else "2"
    kind.change(dataset / kind.name, lambda values: values | {"format_version": version})
    assert f"format_version='{version}' must be a whole number" in refusal(dataset, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_newer_version_is_refused(kind: Kind, dataset: Path) -> None:
    kind.change(dataset / kind.name, lambda values: values | {"format_version": 2})
    assert "format_version=2 is newer than this program reads (1); update it" in refusal(dataset, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_another_format_is_refused(kind: Kind, dataset: Path) -> None:
    kind.change(dataset / kind.name, lambda values: values | {"format": "glo-other"})
    assert "format='glo-other', where 'glo-" in refusal(dataset, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_file_of_before_the_first_release_is_to_be_made_anew(kind: Kind, dataset: Path) -> None:
    kind.change(dataset / kind.name, lambda values: {k: v for k, v in values.items() if k != "format"})
    assert refusal(dataset, kind).endswith(
        "is of a format from before the first release; preprocess the images anew into another folder"
    )


@pytest.mark.parametrize("change", [{"counts": {"files": 1}}, {"removed": ["a"]}, {"duplicate_of": {"a": 1}}])
def test_a_wrong_value_inside_a_snapshot_is_one_line(change: Values, dataset: Path) -> None:
    kind = KINDS["snapshot"]
    kind.change(dataset / kind.name, lambda values: values | change)
    assert refusal(dataset, kind).endswith("the file is damaged, copy it back")


def test_preprocessing_leaves_a_dataset_of_before_the_first_release_alone(dataset: Path, tmp_path: Path) -> None:
    kind = KINDS["dataset"]
    kind.change(dataset / kind.name, lambda values: {k: v for k, v in values.items() if k != "format"})
    shutil.rmtree(dataset / "plans")
    shutil.rmtree(dataset / "snapshots")
    (tmp_path / "images").mkdir()
    job = PreprocessJob(input=(Location(tmp_path / "images"),), dataset=Location(dataset), resolution=8, channels=3)
    assert "preprocess the images anew" in refusal(dataset, kind._replace(read=lambda _: preprocess(job)))


def test_the_newest_entry_of_the_stat_cache_counts(dataset: Path) -> None:
    place, one, other = Location(dataset), b"k" * 16, b"m" * 16
    update_stat_cache(place, [FileStats(other + one, np.array([1, 2]), np.array([3, 4]))])
    update_stat_cache(place, [FileStats(b"", np.array([], np.int64), np.array([], np.int64))])
    stats = read_stat_cache(place)
    entries = {stats.keys[16 * i : 16 * i + 16]: (stats.sizes[i], stats.mtimes_ns[i]) for i in range(len(stats.sizes))}
    assert entries == {one: (2, 4), other: (1, 3)}
