"""Without hyper step it is torch's own optimizer; with it, it bears what that one bears."""

from __future__ import annotations

import math
from typing import Any
from typing import TYPE_CHECKING
import warnings

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from optuna_ext import HypergradientAdamW
from optuna_ext import HypergradientSGD


if TYPE_CHECKING:
    from tests.online.hypergradient.conftest import Case
    from tests.online.hypergradient.conftest import Lab

Options = dict[str, Any]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
def test_without_hyper_step_it_is_torchs_bit_for_bit(
    lab: Lab, case: Case, weight_decay: float, maximize: bool, device: str
) -> None:
    kind, options = case
    options = {"lr": 0.05, "weight_decay": weight_decay, "maximize": maximize, **options}
    ours, theirs = lab.net(device), lab.net(device)
    batches = lab.batches(20, device)
    a = lab.train(ours, lab.ours[kind](ours.parameters(), hyper_lr=0.0, **options), batches)
    b = lab.train(theirs, lab.torchs[kind](theirs.parameters(), foreach=True, **options), batches)
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_without_hyper_step(lab: Lab, kind: str, dtype: torch.dtype) -> None:
    ours, theirs = lab.net(dtype=dtype), lab.net(dtype=dtype)
    batches = lab.batches(10)
    a = lab.train(ours, lab.ours[kind](ours.parameters(), lr=0.05, hyper_lr=0.0), batches)
    b = lab.train(theirs, lab.torchs[kind](theirs.parameters(), lr=0.05, foreach=True), batches)
    assert torch.equal(a, b)


def test_complex_parameters(lab: Lab, case: Case) -> None:
    kind, options = case
    start = torch.randn(5, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    target = torch.ones(5, dtype=torch.complex64)
    results = []
    for optimizer_type, more in (
        (lab.torchs[kind], {"foreach": True}),
        (lab.ours[kind], {"hyper_lr": 0.0}),
        (lab.ours[kind], {}),
    ):
        z = nn.Parameter(start.clone())
        optimizer = optimizer_type([z], lr=0.01, **options, **more)
        for _ in range(10):
            optimizer.zero_grad()
            torch.autograd.backward((z - target).abs().square().sum())
            optimizer.step()
        results.append(z.detach())
    assert torch.equal(results[0], results[1])
    assert (results[2] - target).norm() < (results[1] - target).norm()  # the rate has grown


def test_a_parameter_that_did_not_move_has_no_say(lab: Lab, kind: str) -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = lab.ours[kind]([a, b], lr=0.1, weight_decay=0.0)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    b.grad = None
    optimizer.step()
    a.grad, b.grad = None, torch.ones(2)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()  # a has no gradient, b has not moved
    assert optimizer.param_groups[0]["lr"] == rate


def test_closures_are_called_once_with_gradients(lab: Lab, kind: str) -> None:
    net, twin = lab.net(), lab.net()
    optimizer, plain = lab.ours[kind](net.parameters()), lab.ours[kind](twin.parameters())
    batches = lab.batches(5)
    calls = []
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            torch.autograd.backward(loss)
            calls.append(loss.item())
            return calls[-1]

        assert optimizer.step(closure) == calls[-1]
    assert len(calls) == 5
    assert torch.equal(
        lab.train(twin, plain, batches), nn.utils.parameters_to_vector(net.parameters())
    )


def test_hooks_are_called_once_a_step(lab: Lab, kind: str) -> None:
    lab.torchs[kind]([nn.Parameter(torch.zeros(1))])  # which wraps the step of torch's class
    net = lab.net()
    optimizer = lab.ours[kind](net.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    lab.train(net, optimizer, lab.batches(2))
    assert calls == ["before", "after"] * 2


def test_gradient_scaler_changes_nothing_and_skips_overflows(lab: Lab, kind: str) -> None:
    net, twin = lab.net(), lab.net()
    scaled, plain = lab.ours[kind](net.parameters()), lab.ours[kind](twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i, (x, y) in enumerate(lab.batches(6)):
        scaled.zero_grad()
        torch.autograd.backward(scaler.scale(F.cross_entropy(net(x), y)))
        if i == 3:
            next(net.parameters()).grad.mul_(math.inf)  # type: ignore[union-attr]
        scaler.step(scaled)
        scaler.update()
        if i != 3:
            lab.train(twin, plain, [(x, y)])
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5)
    assert scaled.param_groups[0]["lr"] == pytest.approx(plain.param_groups[0]["lr"], rel=1e-5)


def test_memory_formats_may_differ() -> None:
    nets = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rates = []
    for net in nets:
        optimizer = HypergradientAdamW(net.parameters())
        for i in range(5):
            x = torch.full((2, 3, 8, 8), float(i)).sin()
            optimizer.zero_grad()
            torch.autograd.backward(
                net(x.contiguous(memory_format=torch.channels_last)).square().mean()
            )
            optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-4)


@pytest.mark.parametrize("now", [{"nesterov": True}, {"momentum": 0.0}])
def test_the_momentum_may_be_changed_while_it_trains(now: Options) -> None:
    """A direction is never written where the momentum is kept."""
    theta = nn.Parameter(torch.zeros(1))
    optimizer = HypergradientSGD([theta], momentum=0.9)
    for change in ({}, now, {"momentum": 0.9}):
        optimizer.param_groups[0] |= change
        theta.grad = torch.ones(1)
        optimizer.step()
    steps = 3 if "nesterov" in now else 2
    momentum = sum(0.9**i for i in range(steps))
    assert optimizer.state[theta]["momentum_buffer"].item() == pytest.approx(momentum)


def test_nothing_warns(lab: Lab) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in lab.ours:
            net = lab.net()
            lab.train(net, lab.ours[kind](net.parameters()), lab.batches(3))
