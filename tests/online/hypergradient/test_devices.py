from __future__ import annotations

from collections.abc import Callable
import copy

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientAdamW
from optuna_ext import HypergradientSGD


KINDS: dict[str, Callable[..., Optimizer]] = {
    "sgd": HypergradientSGD,
    "momentum": lambda parameters: HypergradientSGD(parameters, momentum=0.9),
    "nesterov": lambda parameters: HypergradientSGD(parameters, momentum=0.9, nesterov=True),
    "adam": HypergradientAdam,
    "amsgrad": lambda parameters: HypergradientAdam(parameters, amsgrad=True),
    "adamw": HypergradientAdamW,
}


def net(device: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)


def train(model: nn.Module, optimizer: Optimizer, n: int = 3) -> Tensor:
    device = next(model.parameters()).device
    x = torch.linspace(-1, 1, 30).view(10, 3).to(device)
    for _ in range(n):
        optimizer.zero_grad()
        torch.autograd.backward(mse_loss(model(x), x[:, :1]))
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_one_number_per_group(kind: str, fake_cuda: list[str]) -> None:
    model = net("cuda:1")
    optimizer = KINDS[kind](model.parameters())
    train(model, optimizer)
    x = torch.ones(2, 3, device="cuda:1")
    model(x).sum().backward()
    fake_cuda.clear()
    optimizer.step()
    assert len(fake_cuda) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_gpu_to_the_cpu_and_back(kind: str, fake_cuda: list[str]) -> None:
    del fake_cuda
    model = net("cuda:0")
    optimizer = KINDS[kind](model.parameters())
    train(model, optimizer)
    for device in ("cpu", "cuda:1"):
        other = net(device)
        following = KINDS[kind](other.parameters())
        other.load_state_dict(model.state_dict())
        following.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expected = train(model, optimizer)
        torch.testing.assert_close(train(other, following), expected)
        model, optimizer = other, following


@pytest.mark.parametrize("option", ["fused", "capturable"])
def test_steps_that_were_counted_on_the_device(option: str, fake_cuda: list[str]) -> None:
    """There torch's optimizers that are fused or capturable count them."""
    model = net("cuda:0")
    theirs = torch.optim.Adam(
        model.parameters(), fused=option == "fused", capturable=option == "capturable"
    )
    for p in model.parameters():
        theirs.state[p] = {
            "step": torch.tensor(7.0, device="cuda:0"),
            "exp_avg": torch.full_like(p, 0.1),
            "exp_avg_sq": torch.full_like(p, 0.2),
        }
    ours = HypergradientAdam(model.parameters())
    ours.load_state_dict(theirs.state_dict())
    train(model, ours, 1)
    fake_cuda.clear()
    ours.step()
    assert len(fake_cuda) == 1
    assert {state["step"].item() for state in ours.state.values()} == {9.0}
