"""The last direction is kept, whatever becomes of the memory of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer


if TYPE_CHECKING:
    from tests.online.hypergradient.conftest import Case
    from tests.online.hypergradient.conftest import Lab

Give = Callable[[nn.Parameter, Tensor], None]
LENGTH = 70


def fresh(p: nn.Parameter, gradient: Tensor) -> None:
    p.grad = gradient.clone()


def in_place(p: nn.Parameter, gradient: Tensor) -> None:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    p.grad.copy_(gradient)


def through_data(p: nn.Parameter, gradient: Tensor) -> None:
    """Write what autograd does not notice."""
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    p.grad.data[:] = gradient


def spoiled(p: nn.Parameter, gradient: Tensor) -> None:
    if p.grad is not None:
        p.grad.fill_(torch.nan)
    p.grad = gradient.clone()


def by_numpy(p: nn.Parameter, gradient: Tensor) -> None:
    if p.grad is None:
        p.grad = torch.zeros_like(p)
    p.grad.numpy()[:] = gradient.numpy()


def numpys(p: nn.Parameter, gradient: Tensor) -> None:
    """Write to memory that is not torch's."""
    if p.grad is None:
        p.grad = torch.from_numpy(torch.zeros(LENGTH).numpy().copy())
    p.grad.numpy()[:] = gradient.numpy()


def shared(p: nn.Parameter, gradient: Tensor) -> None:
    if p.grad is None:
        p.grad = torch.zeros_like(p).share_memory_()  # type: ignore[no-untyped-call]
    p.grad.copy_(gradient)


def part(p: nn.Parameter, gradient: Tensor) -> None:
    """Do as DistributedDataParallel with its buckets."""
    if p.grad is None:
        p.grad = torch.zeros(3 * LENGTH)[LENGTH : 2 * LENGTH]
    p.grad.copy_(gradient)


def rates(optimizer_type: Callable[..., Optimizer], give: Give, **options: Any) -> list[float]:
    """Return the rates of ten steps with gradients given so."""
    p = nn.Parameter(torch.zeros(LENGTH))
    optimizer = optimizer_type([p], lr=0.5, **options)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(10):
        give(p, torch.randn(LENGTH, generator=generator))
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("give", [in_place, through_data, spoiled, by_numpy, numpys, shared, part])
def test_gradients_may_be_overwritten(lab: Lab, case: Case, give: Give) -> None:
    """But for the last bits, which depend on where memory lies, the rates are the same."""
    kind, options = case
    expected = rates(lab.ours[kind], fresh, **options)
    assert rates(lab.ours[kind], give, **options) == pytest.approx(expected, rel=1e-4)
    assert len({*expected}) == 10


@pytest.mark.parametrize("owner", ["net", "optimizer"])
def test_zeroing_gradients_in_place_changes_nothing(lab: Lab, case: Case, owner: str) -> None:
    kind, options = case
    found = []
    for in_place in ([False], [True], [False, True]):  # by turns
        net = lab.net()
        optimizer = lab.ours[kind](net.parameters(), **options)
        zero_grad = (net if owner == "net" else optimizer).zero_grad
        for i, (x, y) in enumerate(lab.batches(8)):
            zero_grad(set_to_none=not in_place[i % len(in_place)])
            torch.autograd.backward(F.cross_entropy(net(x), y))
            optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
    assert found[0] == found[1] == found[2] != 1e-3
