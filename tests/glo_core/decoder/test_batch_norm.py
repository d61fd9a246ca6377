import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glo_core.common.runtime import SingleProcess
from glo_core.decoder.batch_norm import (
    GroupedBatchNorm,
    NormGroups,
    group_batch_norms,
    merge_running_statistics,
    norm_groups_set,
    set_norm_groups,
)
from tests.helpers.modules import submodule


def groups_of(rows: int, total: int, first: int = 0, *, shared: bool = False, runtime: SingleProcess) -> NormGroups:
    return NormGroups(rows=rows, count=total // rows, first=first, shared=shared, runtime=runtime)


def norm_of(channels: int = 4, dtype: torch.dtype = torch.float64) -> GroupedBatchNorm:
    random = torch.Generator().manual_seed(0)
    norm = GroupedBatchNorm(channels, momentum=0.1).to(dtype)
    norm.weight.data.copy_(torch.rand(channels, generator=random) + 0.5)
    norm.bias.data.copy_(torch.randn(channels, generator=random))
    return norm


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4)])
@pytest.mark.parametrize("rows", [6, 3, 2])
def test_each_group_is_normalized_by_its_own_statistics(shape: tuple[int, ...], rows: int) -> None:
    norm = norm_of()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
    parts = x.split(rows)
    statistics = [(torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)) for _ in parts]
    expected = torch.cat(
        [
            F.batch_norm(part, mean, var, norm.weight, norm.bias, training=True, momentum=1.0)
            for part, (mean, var) in zip(parts, statistics, strict=True)
        ]
    )
    weights = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    set_norm_groups(norm, groups_of(rows, 6, runtime=SingleProcess()))
    actual = norm(x)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    means, variances = (torch.stack(values).mean(dim=0) for values in zip(*statistics, strict=True))
    torch.testing.assert_close(norm.running_mean, 0.1 * means)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variances)


class Threads(SingleProcess):
    """Ranks that are threads of this process; the sum is one after the other, in the order of ranks."""

    def __init__(self, rank: int, ranks: int, barrier: threading.Barrier, board: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.rank, self.world_size = rank, ranks
        self._barrier, self._board = barrier, board

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait(10)
        total = sum(self._board[rank] for rank in range(self.world_size))
        self._barrier.wait(10)
        assert isinstance(total, torch.Tensor)
        return tensor.copy_(total)


def over_ranks(x: torch.Tensor, weights: torch.Tensor, edges: list[int], rows: int) -> list[torch.Tensor]:
    """Output, gradient, running mean and variance of `x` in groups of `rows`, its rows cut at `edges` over threads."""
    ranks = len(edges) - 1
    barrier, board = threading.Barrier(ranks), dict[int, torch.Tensor]()
    results: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    shared = any(edge % rows for edge in edges)

    def rank_main(rank: int) -> None:
        norm, own = norm_of(dtype=x.dtype), slice(edges[rank], edges[rank + 1])
        runtime = Threads(rank, ranks, barrier, board)
        set_norm_groups(norm, groups_of(rows, len(x), edges[rank], shared=shared, runtime=runtime))
        part = x[own].clone().requires_grad_()
        output = norm(part)
        # Through `backward`, each thread would run on one shared engine thread and wait for itself.
        (gradient,) = torch.autograd.grad((output * weights[own]).sum(), part)
        merge_running_statistics(norm, len(part))
        results[rank] = [output.detach(), gradient, norm.running_mean, norm.running_var]

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(results)
    for other in results[1:]:
        torch.testing.assert_close(other[2:], results[0][2:])
    return [torch.cat([result[i] for result in results]) for i in (0, 1)] + results[0][2:]


@pytest.mark.parametrize("edges", [[0, 4, 8], [0, 3, 8], [0, 1, 2, 8], [0, 2, 4, 6, 8]])
@pytest.mark.parametrize("rows", [8, 4, 2])
def test_no_cut_over_ranks_changes_values_gradients_or_running_statistics(edges: list[int], rows: int) -> None:
    random = torch.Generator().manual_seed(1)
    x, weights = (torch.randn(8, 4, 3, 3, dtype=torch.float64, generator=random) for _ in range(2))
    alone = over_ranks(x, weights, [0, 8], rows)
    torch.testing.assert_close(over_ranks(x, weights, edges, rows), alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("edges", [[0, 8], [0, 3, 8]])
def test_variance_is_right_in_float32_far_from_zero(edges: list[int]) -> None:
    random = torch.Generator().manual_seed(1)
    x = 300 + 0.1 * torch.randn(8, 4, 16, 16, generator=random)
    exact = x.double()
    _, _, mean, var = over_ranks(x, torch.ones_like(x), edges, 8)
    expected = exact.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), 0.1 * expected.mean(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close((var.double() - 0.9) / 0.1, expected.var(dim=1), rtol=1e-3, atol=2e-6)
    output = over_ranks(x, torch.ones_like(x), edges, 8)[0]
    norm = norm_of(dtype=torch.float32)
    scaled = (output - norm.bias[:, None, None]) / norm.weight[:, None, None]
    # var / (var + eps): eps is a thousandth of the variance.
    torch.testing.assert_close(scaled.transpose(0, 1).flatten(1).var(dim=1), torch.ones(4), rtol=3e-3, atol=0)


def test_the_batch_norms_of_any_module_become_grouped_and_compute_the_same() -> None:
    torch.manual_seed(0)
    first, second = nn.BatchNorm1d(5), nn.BatchNorm2d(5, affine=False)
    plain = nn.Sequential(nn.Linear(3, 5), first, nn.Unflatten(1, (5, 1, 1)), second)
    first.weight.data.uniform_(0.5, 2)
    x = torch.randn(8, 3)
    expected = plain(x)
    for norm in (first, second):
        norm.reset_running_stats()
    exact = group_batch_norms(plain)
    assert [type(module) for module in exact.children()][1::2] == [GroupedBatchNorm, GroupedBatchNorm]
    torch.testing.assert_close(exact(x), expected)


def test_a_norm_without_weights_gets_none_and_one_in_two_places_stays_one() -> None:
    norm, bare = nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)
    exact = group_batch_norms(nn.Sequential(norm, bare, nn.Sequential(norm)))
    assert submodule(exact, "0", GroupedBatchNorm) is exact.get_submodule("2.0")
    assert [parameter.requires_grad for parameter in exact.parameters()] == [True, True, False, False]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, track_running_stats=False)])
def test_a_norm_without_a_running_mean_of_its_own_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"BatchNorm1d.* needs running statistics"):
        group_batch_norms(nn.Sequential(norm))


def test_groups_are_set_within_the_block_alone() -> None:
    norm, groups = norm_of(), groups_of(2, 4, runtime=SingleProcess())
    with norm_groups_set(norm, groups):
        assert norm.groups is groups
    assert norm.groups is None
