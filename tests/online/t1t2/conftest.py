"""A small smooth net in float64 and all that can be tuned in its training."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD

from optuna_ext import Schedule
from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Dropout
from optuna_ext.online.t1t2 import HiddenNoise
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2
from optuna_ext.online.t1t2 import LabelSmoothing
from optuna_ext.online.t1t2 import Mixup


Batch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[..., Optimizer]
MakeHyperparameters = Callable[[], list[Hyperparameter]]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda params: SGD(params, 0.1),
    "momentum": lambda params: SGD(params, 0.1, momentum=0.9),
    "nesterov": lambda params: SGD(params, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, 0.01),
    "adamw": lambda params: AdamW(params, 0.01, weight_decay=0.0),
}


def everything() -> list[Hyperparameter]:
    return [
        Mixup(3, init=0.3),
        LabelSmoothing(3, init=0.1),
        L2(per_layer=True, init=1e-2),
        InputNoise(init=0.3),
        Dropout(init=0.2),
    ]


HYPERPARAMETERS: dict[str, MakeHyperparameters] = {
    "l2": lambda: [L2(init=1e-2)],
    "l2-per-layer": lambda: [L2(per_layer=True, init=1e-2)],
    "input-noise": lambda: [InputNoise(init=0.3)],
    "hidden-noise": lambda: [HiddenNoise(init=0.3)],
    "dropout": lambda: [Dropout(init=0.3)],
    "label-smoothing": lambda: [LabelSmoothing(3, init=0.1)],
    "mixup": lambda: [Mixup(3, init=0.3)],
    "loss-weight": lambda: [Hyperparameter("weight", init=0.5, low=0.01, high=9.0)],
    "temperature": lambda: [
        Hyperparameter("temperature", init=1.5, low=0.1, high=9.0, scale="softplus")
    ],
    "all": everything,
}


class Lab:
    """What the tests train, and how they differentiate without autograd."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        *self.batches, self.valid = [
            (
                torch.randn(12, 5, generator=generator, dtype=torch.float64),
                torch.randint(3, (12,), generator=generator),
            )
            for _ in range(9)
        ]

    @staticmethod
    def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.SiLU(), nn.Linear(4, 3)
        return nn.Sequential(*layers).to(dtype)

    @staticmethod
    def loss(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
        x, y = batch
        outputs = model(x)
        total = F.cross_entropy(outputs / h["temperature"] if "temperature" in h else outputs, y)
        if "weight" in h:
            total = total + h["weight"] * outputs.square().mean()
        return total

    @staticmethod
    def everything() -> list[Hyperparameter]:
        return everything()

    def tune(self, **options: Any) -> T1T2:
        """Return a tuner of L2 and Adam, but for what ``options`` say."""
        net = options.pop("net", None) or self.net()
        optimizer = options.pop("optimizer", None) or Adam(net.parameters())
        hyperparameters = options.pop("hyperparameters", [L2()])
        return T1T2(net, optimizer, hyperparameters, **({"n_steps": 8} | options))

    def value_at(
        self,
        make_optimizer: MakeOptimizer,
        hyperparameters: list[Hyperparameter],
        schedule: Schedule,
        *,
        n: int,
    ) -> float:
        """Train for ``n`` steps by the schedule; return the validation loss."""
        net = self.net()
        optimizer = make_optimizer(net.parameters())
        tuner = T1T2(net, optimizer, hyperparameters, loss=self.loss, schedule=schedule)
        for batch in self.batches[:n]:
            tuner.step(batch)
        net.eval()
        return F.cross_entropy(net(self.valid[0]), self.valid[1]).item()

    @staticmethod
    def slope(values: Callable[[float], float], h: float = 1e-3) -> float:
        """Differentiate by central differences of fourth order."""
        near, far = values(h) - values(-h), values(2 * h) - values(-2 * h)
        return (8 * near - far) / (12 * h)


@pytest.fixture(scope="session")
def lab() -> Lab:
    return Lab()


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request: pytest.FixtureRequest) -> MakeOptimizer:
    return OPTIMIZERS[request.param]


@pytest.fixture(params=HYPERPARAMETERS)
def make_hyperparameters(request: pytest.FixtureRequest) -> MakeHyperparameters:
    return HYPERPARAMETERS[request.param]
