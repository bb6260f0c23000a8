"""A small net, its batches, and torch's optimizers beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from optuna_ext import HypergradientAdam
from optuna_ext import HypergradientAdamW
from optuna_ext import HypergradientSGD


Batch = tuple[Tensor, Tensor]
Case = tuple[str, dict[str, Any]]

SGD_CASES: list[Case] = [
    ("sgd", options)
    for options in (
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
    )
]
ADAM_CASES: list[Case] = [
    (kind, {"amsgrad": amsgrad}) for kind in ("adam", "adamw") for amsgrad in (False, True)
]


class Lab:
    """What the tests train, and by which optimizers."""

    ours: dict[str, Callable[..., Optimizer]] = {
        "sgd": HypergradientSGD,
        "adam": HypergradientAdam,
        "adamw": HypergradientAdamW,
    }
    torchs: dict[str, Callable[..., Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }

    @staticmethod
    def net(device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, dtype)

    @staticmethod
    def batches(n: int, device: str = "cpu") -> list[Batch]:
        generator = torch.Generator().manual_seed(1)
        return [
            (
                torch.randn(16, 6, generator=generator).to(device),
                torch.randint(3, (16,), generator=generator).to(device),
            )
            for _ in range(n)
        ]

    @staticmethod
    def train(net: nn.Module, optimizer: Optimizer, batches: list[Batch]) -> Tensor:
        """Return the weights, all in one."""
        dtype = next(net.parameters()).dtype
        for x, y in batches:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(net(x.to(dtype)), y))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(params=["sgd", "adam", "adamw"])
def kind(request: pytest.FixtureRequest) -> str:
    """One of the keys of ``Lab.ours`` and ``Lab.torchs``."""
    name: str = request.param
    return name


@pytest.fixture(params=SGD_CASES + ADAM_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """One of these keys, and options of the optimizer."""
    given: Case = request.param
    return given
