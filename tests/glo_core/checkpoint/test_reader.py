import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open

import glo_core as glo
from glo_core.checkpoint.layout import MARK, committed_checkpoints
from glo_core.common.errors import UserError

CONFIG = glo.TrainConfig(
    batch_size=16, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(kind="seed", filters=(8, 4), kernel_size=3)
)


@pytest.fixture
def run(blobs: torch.Tensor, tmp_path: Path) -> Path:
    glo.train_phase(
        CONFIG, glo.TensorImages(blobs), glo.Phase(target=300), run=tmp_path, intervals=glo.Intervals(checkpoint=100)
    )
    return tmp_path


def test_plain_pyarrow_and_safetensors_read_a_checkpoint(run: Path) -> None:
    directory = committed_checkpoints(run)[-1]
    codes = pa.ipc.open_file(directory / "codes" / "shard=007.arrow").read_all()
    assert codes.column_names == ["image_id", "code", "raw", "exp_avg", "exp_avg_sq", "num_updates"]
    assert [str(kind) for kind in codes.schema.types[:2]] == ["int64", "fixed_size_list<item: float not null>[3]"]
    assert str(codes.schema.field("num_updates").type) == "int32"
    ids = codes.column("image_id").to_numpy()
    assert (ids % 32 == 7).all() and len(ids) == len(range(7, 150, 32))
    values = np.stack(codes.column("code").to_numpy())
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-5)
    with safe_open(directory / "ema.safetensors", "pt") as file:
        assert file.get_tensor("output.weight").shape == (4, 1, 3, 3)
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in list(file.keys()))
    with safe_open(directory / "optimizer.safetensors", "pt") as file:
        assert {"output.bias/exp_avg", "output.bias/exp_avg_sq", "output.bias/step"} <= set(file.keys())


def test_old_checkpoints_go_and_two_stay(run: Path) -> None:
    assert [path.name for path in committed_checkpoints(run)] == ["204", "300"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["204", "300"]


def test_without_its_mark_a_checkpoint_is_none(run: Path) -> None:
    (run / "checkpoints" / "300" / MARK).unlink()
    assert glo.Checkpoint.latest(run).position.images_seen == 204


@pytest.mark.parametrize("part", ["codes/shard=003.arrow", "decoder.safetensors"])
def test_a_part_cut_short_altered_or_missing_is_named(run: Path, part: str) -> None:
    checkpoint = glo.Checkpoint.latest(run)
    path = checkpoint.directory / part
    data = path.read_bytes()
    for damage, message in [(data[:-5], "cut short"), (data[:-1] + b"\0" if data[-1] else data[:-1] + b"1", "BLAKE3")]:
        path.write_bytes(damage)
        with pytest.raises(UserError, match=f"{path.name}.*{message}.*delete {checkpoint.directory} to go on"):
            checkpoint.part(part)
    path.unlink()
    with pytest.raises(UserError, match="missing from the checkpoint"):
        checkpoint.part(part)


def test_the_restored_decoder_makes_the_same_images(blobs: torch.Tensor, tmp_path: Path) -> None:
    trained = glo.train_phase(CONFIG, glo.TensorImages(blobs), glo.Phase(target=300), run=tmp_path)
    checkpoint = glo.Checkpoint.latest(tmp_path)
    ids, codes = checkpoint.codes()
    assert ids.tolist() == list(range(150))
    row = int(np.flatnonzero(trained.table.ids == 42)[0])
    here = trained.decoder(trained.table.codes(torch.tensor([row])))
    # The memory format is not stored, and rounding differs between formats.
    torch.testing.assert_close(checkpoint.decoder()(torch.from_numpy(codes[42:43])), here, atol=1e-5, rtol=1e-5)


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint here"):
        glo.Checkpoint.latest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"decoder": glo.DecoderConfig(filters=(8, 4))}, "decoder.kind: seed -> dcgan"),
        ({"decoder": dataclasses.replace(CONFIG.decoder, filters=(8, 8))}, "decoder.filters: (8, 4) -> (8, 8)"),
        ({"code": glo.CodeConfig(dim=4)}, "code.dim: 3 -> 4"),
        ({"code": glo.CodeConfig(dim=3, projection="ball")}, "code.projection: sphere -> ball"),
        ({"code": glo.CodeConfig(dim=3, optimizer="sgd")}, "code.optimizer: adam -> sgd"),
        ({"optimizer": "sgd"}, "optimizer: adam -> sgd"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_in_one_line(
    run: Path, blobs: torch.Tensor, changes: dict[str, Any], line: str
) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(UserError) as caught:
        glo.train_phase(config, glo.TensorImages(blobs), glo.Phase(target=400), run=run)
    assert str(caught.value).startswith(f"{run / 'checkpoints' / '300'}: is of another recipe ({line})")
