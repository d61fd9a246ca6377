"""Gradients summed bucket by bucket; the real ranks of `tests/distributed` show that nothing changes by it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from glo_core.common.runtime import SingleProcess
from glo_core.training.gradient_sum import GradientSum


class Doubling(SingleProcess):
    """Two ranks with the same gradients: a sum is twice as much, and comes when it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def start_all_reduce_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        self.events.append(f"start {tensor.numel()}")

        def wait() -> None:
            self.events.append(f"wait {tensor.numel()}")
            tensor.mul_(2)

        return wait


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.Linear(5, 2)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10**6])
def test_each_gradient_is_the_sum_over_ranks_at_every_size_of_bucket(bucket_bytes: int) -> None:
    plain, summed, runtime = network(), network(), Doubling()
    total = GradientSum(summed.parameters(), runtime, bucket_bytes)
    for seed in range(3):
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        for module in (plain, summed):
            module.zero_grad(set_to_none=True)
            module(x).square().sum().backward()
        total.wait()
        for expected, actual in zip(plain.parameters(), summed.parameters(), strict=True):
            assert expected.grad is not None
            assert actual.grad is not None
            torch.testing.assert_close(actual.grad, 2 * expected.grad)
            assert actual.grad.stride() == actual.stride()  # As the fused optimizers need it.


def test_sums_begin_with_the_last_layer_while_the_backward_pass_goes_on() -> None:
    module, runtime = network(), Doubling()
    total = GradientSum(module.parameters(), runtime, bucket_bytes=1)
    module[0].weight.register_hook(lambda _: runtime.events.append("first layer"))  # type: ignore[index]
    module(torch.ones(1, 1, 8, 8)).sum().backward()
    assert runtime.events.index("start 10") < runtime.events.index("first layer")
    assert not any(event.startswith("wait") for event in runtime.events)
    total.wait()
    starts = [event.split()[1] for event in runtime.events if event.startswith("start")]
    assert starts == [event.split()[1] for event in runtime.events if event.startswith("wait")]
    assert starts == ["2", "10", "5", "720", "4", "36"]


def test_a_parameter_without_a_gradient_gets_none_and_holds_nobody_up() -> None:
    module, runtime = network(), Doubling()
    unused = nn.Parameter(torch.ones(3))
    total = GradientSum([*module.parameters(), unused], runtime, bucket_bytes=1)
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        module(torch.ones(1, 1, 8, 8)).sum().backward()
        total.wait()
        assert unused.grad is None
        assert all(parameter.grad is not None for parameter in module.parameters())
