from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor

from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Dropout
from optuna_ext.online.t1t2 import HiddenNoise
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2
from optuna_ext.online.t1t2 import LabelSmoothing
from optuna_ext.online.t1t2 import Mixup


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "trace": {"trace": 0.9},
    "unroll": {"unroll": 3},
    "hold_length": {"hold_length": True},
}


def tuner(device: str, **options: Any) -> T1T2:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    model.to(device)
    tuned = L2(), InputNoise(), HiddenNoise(), Dropout(), Mixup(2), LabelSmoothing(2)
    optimizer = torch.optim.Adam(model.parameters())
    return T1T2(model, optimizer, tuned, n_steps=30, every=5, **options)


def batch(device: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 2)
    return x.to(device), (x[:, 0] > 0).long().to(device)


@pytest.mark.parametrize("way", WAYS)
def test_only_a_move_of_the_hyperparameters_waits(way: str, fake_cuda: list[str]) -> None:
    made, rows = tuner("cuda:1", **WAYS[way]), batch("cuda:1")
    for _ in range(5):
        made.step(rows, rows)
    for _ in range(4):
        fake_cuda.clear()
        made.step(rows, rows)
        assert not fake_cuda
    made.step(rows, rows)
    assert len(fake_cuda) == 2  # the derivatives, and the values


@pytest.mark.parametrize("way", WAYS)
def test_from_a_gpu_to_the_cpu_and_back(way: str, fake_cuda: list[str]) -> None:
    """In the middle between two moves, too; only the noise is another one."""
    del fake_cuda
    made = tuner("cuda:0", **WAYS[way])
    for device in ("cpu", "cuda:1"):
        rows = batch(str(next(made.model.parameters()).device))
        for _ in range(9):
            made.step(rows, rows)
        other = tuner(device, **WAYS[way])
        other.model.load_state_dict(made.model.state_dict())
        other.optimizer.load_state_dict(made.optimizer.state_dict())
        other.load_state_dict(made.state_dict())
        assert other.values == pytest.approx(made.values)
        rows = batch(device)
        other.step(rows, rows)
        made = other
    assert made.n_steps == 20
    assert made.n_skipped == 0
