"""What cannot work is refused in one sentence."""

from __future__ import annotations

import math
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import StepLR

from optuna_ext import HypergradientSGD


if TYPE_CHECKING:
    from tests.online.hypergradient.conftest import Lab

Options = dict[str, Any]


def test_schedulers_are_refused_at_once(lab: Lab, kind: str) -> None:
    optimizer = lab.ours[kind]([nn.Parameter(torch.zeros(1))])
    with pytest.raises(RuntimeError, match="sets its own learning rate: use no scheduler"):
        StepLR(optimizer, step_size=1)


def test_reducing_the_rate_on_plateaus_is_refused_when_it_happens(lab: Lab, kind: str) -> None:
    theta = nn.Parameter(torch.zeros(1))
    optimizer = lab.ours[kind]([theta], lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    theta.grad = torch.ones(1)
    optimizer.step()
    scheduler.step(1.0)
    optimizer.step()
    scheduler.step(1.0)  # no better
    with pytest.raises(RuntimeError, match="sets its own learning rate: use no scheduler"):
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = HypergradientSGD(embedding.parameters())
    torch.autograd.backward(embedding(torch.tensor([1])).sum())
    with pytest.raises(RuntimeError, match="needs dense gradients, .* sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sgd", {"lr": -1.0}, "`lr` must be at least 0 and finite, but got -1"),
        ("sgd", {"lr": 0.0}, "`lr` must be positive with rule='exponential'"),
        ("sgd", {"lr": math.inf}, "`lr` must be at least 0 and finite"),
        ("sgd", {"momentum": 1.0}, r"`momentum` must be in \[0, 1\), but got 1.0"),
        ("sgd", {"dampening": 2.0}, "`dampening` must be in"),
        ("sgd", {"nesterov": True}, "`nesterov` needs a positive `momentum`"),
        ("sgd", {"weight_decay": -1.0}, "`weight_decay` must be at least 0, but got -1"),
        ("adam", {"betas": (0.9, 1.0)}, r"`betas` must be in \[0, 1\)"),
        ("adam", {"eps": -1.0}, "`eps` must be at least 0"),
        ("adamw", {"hyper_lr": -0.1}, "`hyper_lr` must be at least 0"),
        ("adam", {"hyper_lr": 1.0, "rule": "multiplicative"}, "`hyper_lr` must be below 1"),
        ("adam", {"rule": "exp"}, "`rule` must be one of .*'exponential'.* but got 'exp'"),
    ],
)
def test_mistakes_in_one_sentence(lab: Lab, kind: str, options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.ours[kind]([nn.Parameter(torch.zeros(1))], **options)


def test_the_rate_is_a_number() -> None:
    with pytest.raises(TypeError, match="`lr` must be a float, but got tensor"):
        HypergradientSGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))  # type: ignore[arg-type]
