import pytest
import torch
import torch.nn.functional as F

from glo_core.decoder import DecoderConfig, MaskedBatchNorm, SeedDecoder, num_parameters


def test_the_seeds_decoder_has_the_seeds_parameters() -> None:
    decoder = SeedDecoder(DecoderConfig(), code_dim=100, resolution=128, channels=3)
    assert num_parameters(decoder) == 1_589_155


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_every_resolution_and_kernel_doubles_exactly(resolution: int, kernel: int) -> None:
    config = DecoderConfig(filters=(4,) * ((resolution // 4).bit_length() - 1), kernel_size=kernel)
    decoder = SeedDecoder(config, code_dim=5, resolution=resolution, channels=2)
    image = decoder(torch.randn(3, 5))
    assert image.shape == (3, 2, resolution, resolution)
    assert image.abs().max() <= 1


def test_filters_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`decoder.filters` \(=\[8\]\) must have 3 entries for images of 32 px"):
        SeedDecoder(DecoderConfig(filters=(8,)), code_dim=4, resolution=32, channels=1)


def test_masked_batch_norm_is_batch_norm_of_the_live_images() -> None:
    torch.manual_seed(0)
    norm = MaskedBatchNorm(4, momentum=0.1).double()
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.uniform_(-1, 1)
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    live = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.float64)
    kept = live.bool()
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    expected = F.batch_norm(x[kept], mean, var, norm.weight, norm.bias, training=True, momentum=0.1)
    weights = torch.randn(int(kept.sum()), 4, 3, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    actual = norm(x, live, None)
    (ours,) = torch.autograd.grad((actual[kept] * weights).sum(), x)
    torch.testing.assert_close(actual[kept], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_no_bias_stands_before_a_batch_norm() -> None:
    decoder = SeedDecoder(DecoderConfig(), code_dim=4, resolution=32, channels=1)
    biases = [name for name, _ in decoder.named_parameters() if name.endswith("bias") and not name.startswith("norms")]
    assert biases == ["output.bias"]


def test_the_start_depends_on_the_seed_alone() -> None:
    first, second, other = (
        SeedDecoder(DecoderConfig(), code_dim=4, resolution=8, channels=1, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.output.weight, second.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)
