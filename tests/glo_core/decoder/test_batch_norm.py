import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glo_core.common.runtime import SingleProcess
from glo_core.decoder.batch_norm import MaskedBatchNorm, mask_batch_norms, shared_batch
from tests.helpers.modules import submodule

MASK = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4)])
def test_masked_batch_norm_is_batch_norm_of_the_valid_images(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = MaskedBatchNorm(4, momentum=0.1).double()
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.uniform_(-1, 1)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    valid = MASK.bool()
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    expected = F.batch_norm(x[valid], mean, var, norm.weight, norm.bias, training=True, momentum=0.1)
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    with shared_batch(norm, MASK, SingleProcess()):
        actual = norm(x)
    (actual_gradient,) = torch.autograd.grad((actual[valid] * weights).sum(), x)
    torch.testing.assert_close(actual[valid], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_the_batch_norms_of_any_module_become_exact_and_compute_the_same() -> None:
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(5), nn.BatchNorm2d(5, affine=False)
    plain = nn.Sequential(nn.Linear(3, 5), first, nn.Unflatten(1, (5, 1, 1)), second)
    first.weight.data.uniform_(0.5, 2)
    x = torch.randn(8, 3)
    expected = plain(x)
    for norm in (first, second):
        norm.reset_running_stats()
    exact = mask_batch_norms(plain)
    assert [type(module) for module in exact.children()][1::2] == [MaskedBatchNorm, MaskedBatchNorm]
    torch.testing.assert_close(exact(x), expected)


def test_a_norm_without_weights_gets_none_and_one_in_two_places_stays_one() -> None:
    norm, bare = nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)
    exact = mask_batch_norms(nn.Sequential(norm, bare, nn.Sequential(norm)))
    assert submodule(exact, "0", MaskedBatchNorm) is exact.get_submodule("2.0")
    assert [parameter.requires_grad for parameter in exact.parameters()] == [True, True, False, False]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, track_running_stats=False)])
def test_a_norm_without_a_running_mean_of_its_own_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d.* needs running statistics"):
        mask_batch_norms(nn.Sequential(norm))


def test_a_batch_is_shared_within_the_block_alone() -> None:
    norm = MaskedBatchNorm(4, momentum=0.1)
    with shared_batch(norm, MASK, SingleProcess()):
        assert norm.mask is MASK
    assert norm.mask is None
    assert norm.runtime is None
