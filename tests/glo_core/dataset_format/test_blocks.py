import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from glo_core.common.errors import ConfigError, DatasetError
from glo_core.data.image_source import TensorImages
from glo_core.dataset_format.blocks import open_block, write_block
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.snapshots import snapshot_digest

CONFIG = ResolvedDatasetConfig(resolution=8, channels=1, code_shards=4)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    ids = np.array([2, 3, 5, 6, 7, 11], np.int64)
    pixels = (np.arange(6 * 64) % 251).astype(np.uint8).reshape(6, 8, 8, 1)
    held_out = np.array([0, 0, 1, 0, 0, 0], np.bool_)
    write_block(tmp_path / "b.arrow", ids, pixels, held_out, 4)
    return tmp_path / "b.arrow"


def test_a_block_has_a_record_batch_per_shard_and_one_for_the_holdout(block: Path) -> None:
    with pa.OSFile(str(block)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(i).to_pydict() for i in range(reader.num_record_batches)]
    assert [batch["image_id"] for batch in batches] == [[], [], [2, 6], [3, 7, 11], [5]]
    assert batches[3]["image"][2] == bytes((np.arange(5 * 64, 6 * 64) % 251).tolist())


def test_a_block_of_nothing_is_a_block(tmp_path: Path) -> None:
    write_block(tmp_path / "b.arrow", np.empty(0, np.int64), np.empty((0, 8, 8, 1), np.uint8), np.empty(0, bool), 4)
    assert open_block(tmp_path / "b.arrow", CONFIG).num_record_batches == 5


def test_a_block_cut_short_is_one_line_that_names_it(block: Path) -> None:
    block.write_bytes(block.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"b\.arrow: not a whole Arrow file \(\d+ bytes; .*copy it back") as caught:
        open_block(block, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_block_of_another_dataset_is_refused(block: Path) -> None:
    with pytest.raises(DatasetError, match=r"5 record batches of image_id int64, image fixed_size_binary\[64\]"):
        open_block(block, ResolvedDatasetConfig(resolution=16, channels=1, code_shards=4))


def test_images_in_memory_lie_shard_by_shard() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 8, 8, 1)
    source = TensorImages(images, code_shards=4)
    assert source.ids.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    part = source.select([3, 0])
    assert part.ids.tolist() == [3, 7, 0, 4, 8]
    assert part.take(np.array([4, 1]))[:, 0, 0, 0].tolist() == [8, 7]


def test_images_of_another_type_are_named() -> None:
    with pytest.raises(ConfigError, match=r"`images` \(=torch.float32 \[2, 3, 8, 8\]\) must be uint8"):
        TensorImages(torch.zeros(2, 3, 8, 8))


def test_a_snapshot_digest_depends_on_content_and_not_on_place() -> None:
    ids, none = np.array([0, 2], np.int64), np.array([], np.int64)

    def hashes(letters: bytes) -> np.ndarray:
        return np.repeat(np.frombuffer(letters, np.uint8), 16).reshape(-1, 16)

    base = snapshot_digest("", CONFIG, ids, hashes(b"ab"), none)
    assert base == snapshot_digest("", CONFIG, ids, hashes(b"ab"), none)
    others = {
        snapshot_digest("x", CONFIG, ids, hashes(b"ab"), none),
        snapshot_digest("", CONFIG, ids, hashes(b"ac"), none),
        snapshot_digest("", CONFIG, ids + 1, hashes(b"ab"), none),
        snapshot_digest("", CONFIG, ids, hashes(b"ab"), ids[:1]),
        snapshot_digest("", dataclasses.replace(CONFIG, resolution=16), ids, hashes(b"ab"), none),
    }
    assert len(others | {base}) == 6
