from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import SGD

from optuna_ext.fused import Dropout
from optuna_ext.fused import Member
from optuna_ext.fused import signature


def _member(model: nn.Module, **options: Any) -> Member:
    return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1), **options)


def _mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


@dataclass
class Settings:
    alpha: float


class Plain(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.value = value


def _local(power: int) -> nn.Module:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.linear(x) ** power
            return h

    return Local()


def _same(x: float, alpha: float) -> float:
    return alpha * x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: nn.Linear(2, 3), lambda: nn.Linear(2, 4)),
        (lambda: nn.Linear(2, 3), lambda: nn.Linear(2, 3).double()),
        (lambda: nn.Linear(2, 3), lambda: nn.Linear(2, 3, bias=False)),
        (lambda: _mlp(2, 5, 1), lambda: _mlp(2, 5, 1, activation=nn.Tanh)),
        (lambda: _mlp(2, 5, 1), lambda: _mlp(2, 6, 1)),
        (lambda: _mlp(2, 9, 1), lambda: _mlp(2, 17, 1)),
        (
            lambda: _mlp(2, 9, 1, activation=nn.Sigmoid),
            lambda: _mlp(2, 10, 1, activation=nn.Sigmoid),
        ),
        (lambda: nn.LeakyReLU(0.1), lambda: nn.LeakyReLU(0.2)),
        (lambda: Plain(1), lambda: Plain(2)),
        (lambda: Plain(1), lambda: Plain(1.0)),
        (lambda: Plain(True), lambda: Plain(1)),
        (lambda: Plain({"a": [1, 2]}), lambda: Plain({"a": [1, 3]})),
        (lambda: Plain(torch.ones(2)), lambda: Plain(torch.zeros(2))),
        (lambda: Plain(Settings(0.1)), lambda: Plain(Settings(0.2))),
        (lambda: Plain(partial(_same, alpha=1)), lambda: Plain(partial(_same, alpha=2))),
        (lambda: Plain(torch.Generator()), lambda: Plain(torch.Generator())),
        (lambda: _local(1), lambda: _local(2)),
    ],
)
def test_differences(one: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> None:
    def member(model: nn.Module) -> Member:
        model.register_parameter("extra", nn.Parameter(torch.zeros(1)))  # some have none
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1))

    assert signature(member(one())) != signature(member(other()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: nn.Linear(2, 3), lambda: nn.Linear(2, 3)),
        (lambda: _mlp(2, 9, 12, 1), lambda: _mlp(2, 16, 11, 1)),
        (lambda: _local(2), lambda: _local(2)),
        (lambda: Plain(Settings(0.1)), lambda: Plain(Settings(0.1))),
        (lambda: Plain(partial(_same, alpha=1)), lambda: Plain(partial(_same, alpha=1))),
        (lambda: Plain(torch.ones(2)), lambda: Plain(torch.ones(2))),
        (lambda: Plain(float("nan")), lambda: Plain(float("nan"))),
        (lambda: nn.LSTM(2, 3), lambda: nn.LSTM(2, 3)),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1)),
            lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.2)),
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), Dropout(0.1, seed=1)),
            lambda: nn.Sequential(nn.Linear(2, 3), Dropout(0.2, seed=2)),
        ),
    ],
)
def test_equals(one: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> None:
    first, second = signature(_member(one(), seed=1)), signature(_member(other(), seed=2))
    assert first == second
    assert hash(first) == hash(second)


def test_optimizers() -> None:
    def member(kind: type[SGD | Adam | AdamW], **options: Any) -> Member:
        model = nn.Linear(2, 3)
        return Member(model=model, optimizer=kind(model.parameters(), **options))

    assert signature(member(SGD, lr=0.1)) == signature(member(SGD, lr=0.2, momentum=0.9))
    assert signature(member(SGD, lr=0.1, momentum=0.9)) != signature(
        member(SGD, lr=0.1, momentum=0.9, nesterov=True)
    )
    assert signature(member(Adam)) != signature(member(AdamW))
    assert signature(member(SGD, lr=0.1)) != signature(member(Adam))
    model = nn.Linear(2, 3)
    halves: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias]}]
    groups = SGD(halves, lr=0.1)
    assert signature(member(SGD, lr=0.1)) != signature(Member(model=model, optimizer=groups))


def test_only_layers_of_moderate_width_are_padded() -> None:
    def of(width: int) -> object:
        return signature(_member(_mlp(2, width, 1)))

    assert of(5) != of(6)
    assert of(7) == of(8)
    assert of(200) == of(256)
    assert of(257) != of(300)


def test_without_eps_widths_are_not_padded() -> None:
    def member(width: int, eps: float) -> Member:
        model = _mlp(2, width, 1)
        return Member(model=model, optimizer=Adam(model.parameters(), eps=eps))

    assert signature(member(9, 1e-8)) == signature(member(10, 1e-8))
    assert signature(member(9, 0)) != signature(member(10, 0))


def test_batch_sizes() -> None:
    def of(model: nn.Module, batch_size: int | None, *, rowwise: bool = True) -> object:
        return signature(_member(model, batch_size=batch_size), rowwise=rowwise)

    assert of(nn.Linear(2, 3), 17) == of(nn.Linear(2, 3), 32)
    assert of(nn.Linear(2, 3), 17) != of(nn.Linear(2, 3), 16)
    assert of(nn.Linear(2, 3), None) != of(nn.Linear(2, 3), 16)
    assert of(nn.Linear(2, 3), 17, rowwise=False) != of(nn.Linear(2, 3), 32, rowwise=False)
    # In these the rows of a batch meet, or may.
    assert of(nn.BatchNorm1d(2), 17) != of(nn.BatchNorm1d(2), 32)
    assert of(Plain(1), 17) != of(Plain(1), 32)


def test_tied_weights() -> None:
    def member(*, tied: bool) -> Member:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        if tied:
            model[1].weight = model[0].weight
        return _member(model)

    assert signature(member(tied=True)) == signature(member(tied=True))
    assert signature(member(tied=True)) != signature(member(tied=False))
