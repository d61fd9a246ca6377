"""Files of every format version that was ever written, read by this code and by a foreign reader."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from glo_core import Checkpoint, Dataset
from tests.golden.make import FORMAT_VERSION

VERSIONS = sorted((Path(__file__).parent).glob("v*"))


def test_the_present_version_is_among_them() -> None:
    assert [path.name for path in VERSIONS] == [f"v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_golden_dataset_is_read_alike_by_pyarrow_and_by_us(version: Path) -> None:
    dataset = Dataset.open(version / "dataset")
    shards = dataset.config.code_shards
    batches = []
    for path in sorted((version / "dataset" / "blocks").glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches += [reader.get_batch(shard).to_pydict() for shard in range(shards)]
    foreign = {i: data for batch in batches for i, data in zip(batch["image_id"], batch["image"], strict=True)}
    images = dataset.images()
    assert sorted(images.ids.tolist()) == sorted(foreign)
    ours = images.take(np.arange(len(images.ids))).numpy()
    assert {int(i): image.tobytes() for i, image in zip(images.ids, ours, strict=True)} == foreign
    rows = pq.read_table(next((version / "dataset" / "manifest").glob("*.parquet"))).to_pylist()
    assert {row["status"] for row in rows} == {"image", "rejected"}
    assert {row["image_id"] for row in rows if row["split"] == "train" and row["status"] == "image"} == set(foreign)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_golden_checkpoint_is_read_alike_by_safetensors_and_by_us(version: Path) -> None:
    checkpoint = Checkpoint.latest(version / "run")
    mark = json.loads((checkpoint.directory / "checkpoint.json").read_text())
    assert mark["snapshot"] == Dataset.open(version / "dataset").digest
    ids, codes = checkpoint.codes()
    tables = [pa.ipc.open_file(path).read_all() for path in checkpoint.directory.glob("codes/*.arrow")]
    foreign = pa.concat_tables(tables).sort_by("image_id")
    assert foreign.column("image_id").to_pylist() == ids.tolist()
    np.testing.assert_array_equal(np.stack(foreign.column("code").to_numpy()), codes)
    weights = load_file(checkpoint.directory / "ema.safetensors")
    decoder = checkpoint.decoder()
    for name, value in decoder.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name])
