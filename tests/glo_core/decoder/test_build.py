import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import glo_core as glo
from glo_core.decoder.batch_norm import GroupedBatchNorm
from glo_core.decoder.build import make_decoder
from glo_core.decoder.config import DecoderConfig
from glo_core.decoder.cost import cost, num_parameters

KINDS = [DecoderConfig(kind="seed"), DecoderConfig(kind="dcgan"), DecoderConfig(kind="residual", modulation=True)]


def test_the_seeds_decoder_has_the_seeds_parameters() -> None:
    config = DecoderConfig(kind="seed", filters=(256, 128, 64, 64, 32), kernel_size=5)
    decoder = make_decoder(config, code_dim=100, resolution=128, channels=3)
    assert num_parameters(decoder) == 1_589_155


def test_dcgan_has_the_parameters_of_the_papers_generator_at_64_px() -> None:
    # 4x4 kernels 128-512-256-128-64-3, and a scale and a shift for each of the 960 normalized channels.
    config = DecoderConfig(kind="dcgan", filters=(512, 256, 128, 64))
    decoder = make_decoder(config, code_dim=128, resolution=64, channels=3)
    assert num_parameters(decoder) == 16 * (128 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * 960


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_every_resolution_and_kernel_doubles_exactly(resolution: int, kernel: int) -> None:
    config = DecoderConfig(kind="seed", filters=(4,) * ((resolution // 4).bit_length() - 1), kernel_size=kernel)
    image = make_decoder(config, code_dim=5, resolution=resolution, channels=2)(torch.randn(3, 5))
    assert image.shape == (3, 2, resolution, resolution)
    assert image.abs().max() <= 1


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
@pytest.mark.parametrize(("resolution", "channels"), [(8, 1), (16, 3), (64, 3), (256, 1)])
def test_every_kind_decodes_every_shape_and_learns_from_every_weight(
    config: DecoderConfig, resolution: int, channels: int
) -> None:
    decoder = make_decoder(config, code_dim=5, resolution=resolution, channels=channels)
    # Twice: what begins at zero hides what is before it.
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        image = decoder(torch.randn(4, 5))
        (image - 0.5).square().mean().backward()
        optimizer.step()
    assert image.shape == (4, channels, resolution, resolution)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in decoder.parameters())


def test_modulation_lets_the_code_scale_each_norm() -> None:
    config = DecoderConfig(kind="residual", filters=(64, 32))
    plain = make_decoder(config, code_dim=5, resolution=16, channels=1)
    modulated = make_decoder(dataclasses.replace(config, modulation=True), code_dim=5, resolution=16, channels=1)
    norms = 2 * 2 + 1  # Two blocks of two, and the last.
    more = num_parameters(modulated) - num_parameters(plain)
    assert more == (5 + 1) * 2 * (64 + 64 + 64 + 32 + 32)
    assert sum("by_code.weight" in name for name, _ in modulated.named_parameters()) == norms


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"kind": "vae"}, r"`kind` \(=vae\) must be seed, dcgan, residual, or package.module:Class"),
        ({"filters": (0,)}, r"`filters` \(=\[0\]\) must be at least 1 each, or auto"),
        ({"kernel_size": 5}, r"`kernel_size` \(=5\) needs `kind` seed, not dcgan"),
        ({"modulation": True}, "`modulation` needs `kind` residual, not dcgan"),
    ],
)
def test_a_bad_value_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        dataclasses.replace(DecoderConfig(), **changes)


def test_filters_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`decoder.filters` \(=\[8\]\) must have 3 entries for images of 32 px"):
        make_decoder(DecoderConfig(filters=(8,)), code_dim=4, resolution=32, channels=1)


def test_no_bias_stands_before_a_batch_norm() -> None:
    decoder = make_decoder(DecoderConfig(kind="seed"), code_dim=4, resolution=32, channels=1)
    biases = [name for name, _ in decoder.named_parameters() if name.endswith("bias") and not name.startswith("norms")]
    assert biases == ["output.bias"]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_the_start_depends_on_the_seed_alone(config: DecoderConfig) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second, other = (
        make_decoder(config, code_dim=4, resolution=8, channels=1, seed=seed).state_dict()["output.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_cost_counts_parameters_operations_and_what_backward_needs() -> None:
    decoder = make_decoder(DecoderConfig(kind="dcgan", filters=(8, 4)), code_dim=5, resolution=16, channels=1)
    costs = cost(decoder, code_dim=5)
    # A transposed convolution multiplies each input value with each of a kernel's outputs.
    multiplications = 5 * 8 * 16 + 8 * 4 * 16 * 4 * 4 + 4 * 1 * 16 * 8 * 8
    assert costs is not None
    assert costs.parameters == num_parameters(decoder)
    assert costs.flops == pytest.approx(2 * multiplications, rel=0.01)  # The rest is the batch norms' sums.
    hidden = 8 * 4 * 4 + 4 * 8 * 8
    # Of each hidden layer what the norm takes and what the ReLU gives; the codes, and the image.
    assert costs.activations == 2 * hidden + 5 + 16 * 16


# ---------------------------------------------------------------- the user's own


class Small(nn.Module):
    """A decoder as a user would write it, with PyTorch's batch norm."""

    def __init__(self, code_dim: int, resolution: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(code_dim, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, channels * resolution**2)
        self.shape = (channels, resolution, resolution)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.calls: torch.Tensor

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.second(torch.relu(self.norm(self.first(codes)))).unflatten(1, self.shape).tanh()


class Flat(Small):
    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return super().forward(codes).flatten(1)


class Pair(Small):
    def forward(self, codes: torch.Tensor) -> Any:  # Wrong on purpose.
        return super().forward(codes), codes


@pytest.fixture
def my_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_decoders")
    vars(module).update(Small=Small, Flat=Flat, Pair=Pair)
    monkeypatch.setitem(sys.modules, "my_decoders", module)


@pytest.mark.usefixtures("my_package")
def test_a_decoder_of_the_users_trains_is_saved_and_comes_back(tmp_path: Path) -> None:
    images = glo.TensorImages(torch.randint(0, 256, (48, 8, 8, 1), dtype=torch.uint8))
    config = glo.TrainConfig(
        batch_size=16, code=glo.CodeConfig(dim=3), decoder=DecoderConfig(kind="my_decoders:Small"), learning_rate=1e-2
    )
    trained = glo.train_phase(config, images, glo.Phase(target=96), run=tmp_path)
    assert isinstance(trained.decoder.norm, GroupedBatchNorm)
    assert int(trained.decoder.get_buffer("calls")) >= 6  # Buffers follow the decoder that trains.
    with pytest.raises(glo.CheckpointError, match="imported only if your own command names it"):
        glo.Checkpoint.latest(tmp_path).decoder()
    again = glo.Checkpoint.latest(tmp_path).decoder(allow_kind="my_decoders:Small")
    codes = trained.table.codes()
    torch.testing.assert_close(again(codes), trained.decoder(codes), rtol=0, atol=0)


def test_what_cannot_be_counted_is_none() -> None:
    class Reads(Small):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return super().forward(codes) * float(codes.sum())

    assert cost(Reads(3, 8, 1), code_dim=3) is None


@pytest.mark.usefixtures("my_package")
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("no_such_module:Small", "`decoder.kind` (=no_such_module:Small): ModuleNotFoundError: No module named"),
        ("my_decoders:Yours", "`decoder.kind` (=my_decoders:Yours): AttributeError: "),
        (
            "my_decoders:Pair",
            "`decoder.kind` (=my_decoders:Pair): AttributeError: 'tuple' object has no attribute 'shape'",
        ),
        ("my_decoders:Flat", "makes (2, 64) of two codes where (2, 1, 8, 8) is needed"),
    ],
)
def test_a_decoder_that_cannot_be_used_is_one_line(kind: str, line: str) -> None:
    with pytest.raises(glo.UserError) as caught:
        make_decoder(DecoderConfig(kind=kind), code_dim=3, resolution=8, channels=1)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
