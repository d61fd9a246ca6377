from typing import Any, Literal

import numpy as np
import pytest
import torch

from glo_core.codes.config import CodeConfig
from glo_core.codes.projection import to_ball, to_sphere
from glo_core.codes.table import CodeTable

Optimizer = Literal["adam", "adagrad", "sgd"]


def table(projection: Literal["sphere", "ball"], optimizer: Optimizer = "adam") -> CodeTable:
    raw = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = CodeConfig(dim=3, projection=projection, optimizer=optimizer, beta1=0.9, beta2=0.99)
    return CodeTable(config, np.arange(6), raw)


BATCHES = ([0, 1, 2], [2, 5], [0], [1, 2, 3, 4, 5], [0, 5])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_each_row_has_a_torch_optimizer_of_its_own(optimizer: Optimizer) -> None:
    codes = table("sphere", optimizer)
    rows = [torch.nn.Parameter(row.clone()) for row in codes.raw]
    reference = [
        torch.optim.Adam([row], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
        if optimizer == "adam"
        else torch.optim.SGD([row], lr=0.1)
        for row in rows
    ]
    generator = torch.Generator().manual_seed(1)
    for batch in BATCHES:
        grad = torch.randn(len(batch), 3, dtype=torch.float64, generator=generator)
        codes.update(torch.tensor(batch), grad, 0.1)
        for place, row in enumerate(batch):
            rows[row].grad = grad[place].clone()
            reference[row].step()
    torch.testing.assert_close(codes.raw, torch.stack([row.detach() for row in rows]), rtol=1e-12, atol=1e-14)
    assert codes.num_updates.tolist() == [3, 2, 3, 1, 1, 3]


def test_row_wise_adagrad_equals_its_formula_in_numpy() -> None:
    codes = table("sphere", "adagrad")
    raw, total = codes.raw.numpy().copy(), np.zeros(6)
    random = np.random.default_rng(1)
    for batch in BATCHES:
        grad = random.normal(size=(len(batch), 3))
        codes.update(torch.tensor(batch), torch.from_numpy(grad), 0.1)
        for place, row in enumerate(batch):
            total[row] += (grad[place] ** 2).sum() / 3
            raw[row] -= 0.1 * grad[place] / (total[row] ** 0.5 + 1e-10)
    np.testing.assert_allclose(codes.raw.numpy(), raw, rtol=1e-12)
    np.testing.assert_allclose(codes.state["sum_sq"].numpy(), total, rtol=1e-12)
    assert list(codes.columns()) == ["raw", "sum_sq", "num_updates"]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_an_update_touches_no_row_outside_the_batch(optimizer: Optimizer) -> None:
    codes = table("sphere", optimizer=optimizer)
    before = [column.clone() for column in codes.columns().values()]
    codes.update(torch.tensor([1, 4]), torch.ones(2, 3, dtype=torch.float64), 0.1)
    after = codes.columns().values()
    others = [0, 2, 3, 5]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[others], new[others])
        assert not torch.equal(old[[1, 4]], new[[1, 4]])
    assert codes.num_updates.tolist() == [0, 1, 0, 0, 1, 0]


def test_ball_projects_after_the_update_and_only_from_outside() -> None:
    codes = table("ball")
    codes.raw = to_ball(codes.raw) * 0.9
    codes.update(torch.arange(6), torch.randn(6, 3, dtype=torch.float64), 0.5)
    norms = codes.raw.norm(dim=1)
    assert norms.max() <= 1 + 1e-12
    inside = torch.tensor([[0.3, 0.0, 0.4]])
    assert torch.equal(to_ball(inside), inside)
    assert torch.equal(codes.codes(), codes.raw)


def test_sphere_projects_in_the_forward_pass_and_leaves_storage_alone() -> None:
    codes = table("sphere")
    torch.testing.assert_close(codes.codes().norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert not torch.allclose(codes.raw.norm(dim=1), torch.ones(6, dtype=torch.float64))
    raw = codes.raw.clone().requires_grad_()
    to_sphere(raw).sum().backward()
    assert raw.grad is not None
    # The gradient through z / |z| has no component along z.
    assert (raw.grad * raw).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize(("field", "value"), [("dim", -1), ("beta1", 1.0), ("learning_rate", -1.0)])
def test_a_bad_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{field}` \(={value}\) must be"):
        CodeConfig(**{field: value})
