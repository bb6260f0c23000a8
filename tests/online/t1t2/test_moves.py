from __future__ import annotations

from collections.abc import Mapping
import math
from typing import TYPE_CHECKING

import pytest
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import SGD

from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Batch
    from tests.online.t1t2.conftest import Lab


def test_values_stay_within_their_bounds_and_get_there(lab: Lab) -> None:
    """The weight of the only term: validation wants longer steps."""

    def weighted(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
        return h["weight"] * lab.loss(model, batch, {})

    net = lab.net()
    weight = Hyperparameter("weight", init=0.02, low=0.01, high=2.0)
    tuner = T1T2(net, SGD(net.parameters(), 0.01), [weight], loss=weighted, n_steps=200, every=2)
    for _ in range(200):
        tuner.step(lab.batches[0], lab.batches[0])
        assert 0.01 <= tuner.values["weight"] <= 2.0 + 1e-9
    assert tuner.values["weight"] == pytest.approx(2.0)


def test_hypergradients_that_are_not_finite_are_skipped_and_counted(lab: Lab) -> None:
    net = lab.net()
    tuner = T1T2(net, Adam(net.parameters()), [InputNoise()], n_steps=8, every=1)
    for i, batch in enumerate(lab.batches):
        tuner.step(batch, (lab.valid[0] * (math.nan if i == 3 else 1.0), lab.valid[1]))
    assert tuner.n_skipped == 1
    assert math.isfinite(tuner.values["input_noise"])
    assert tuner.schedule.at(5) == tuner.schedule.at(4)


def test_an_outlier_is_clipped(lab: Lab) -> None:
    values = []
    for factor in (1.0, 1e9):
        net = lab.net()
        tuner = T1T2(
            net,
            SGD(net.parameters(), 1e-3),
            [Hyperparameter("weight", init=1.0, low=1e-6, high=1e6)],
            loss=lab.loss,
            valid_loss=lambda model, batch: batch[2] * F.cross_entropy(model(batch[0]), batch[1]),
            n_steps=1000,
            every=1,
        )
        for i, batch in enumerate(lab.batches):
            tuner.step(batch, (*lab.valid, factor if i == 4 else 1.0))
        values.append(math.log(tuner.values["weight"]))
    assert abs(values[1] - values[0]) < 3 * abs(values[0])  # not a billion times
