from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import copy
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from optuna_ext.online.t1t2 import Dropout
from optuna_ext.online.t1t2 import HiddenNoise
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Batch
    from tests.online.t1t2.conftest import Lab


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be at least 1"),
        ({"n_steps": 0}, "`n_steps` must be at least 1"),
        ({"n_steps": None}, "Give `n_steps` to tune or `schedule` to follow"),
        ({"trace": 1.0}, r"`trace` must be in \[0, 1\), but got 1.0"),
        ({"unroll": 11}, "`unroll` must be at most 10"),
        ({"unroll": 2, "trace": 0.5}, "two ways to look back"),
        ({"unroll": 2, "hold_length": True}, "`hold_length` works with `unroll=1`"),
        ({"hyperparameters": []}, "`hyperparameters` must not be empty"),
        ({"hyperparameters": [L2(), L2()]}, "`hyperparameters` has two of the name 'l2'"),
        ({"hyperparameters": [Dropout(modules=["9"])]}, "`modules` of Dropout must be names"),
        (
            {"net": nn.Sequential(nn.Linear(5, 3)), "hyperparameters": [HiddenNoise()]},
            "HiddenNoise found no activation modules",
        ),
        ({"net": nn.Sequential(nn.LayerNorm(5))}, "L2 has nothing to decay"),
    ],
)
def test_mistakes_in_one_sentence(lab: Lab, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.tune(**options)


def test_optimizers_without_a_known_derivative_are_refused(lab: Lab) -> None:
    net = lab.net()
    with pytest.raises(TypeError, match="must be a torch.optim.SGD, Adam or AdamW.* got RMSprop"):
        lab.tune(net=net, optimizer=torch.optim.RMSprop(net.parameters()))
    with pytest.raises(ValueError, match="`optimizer` must not use amsgrad, but got True"):
        lab.tune(net=net, optimizer=Adam(net.parameters(), amsgrad=True))
    with pytest.raises(ValueError, match="takes the place of .* AdamW with weight_decay=0"):
        lab.tune(net=net, optimizer=AdamW(net.parameters()))
    with pytest.raises(ValueError, match="a weight that the optimizer does not have"):
        lab.tune(net=net, optimizer=Adam(net[0].parameters()))
    with pytest.raises(ValueError, match="must not have trainable parameters beside the model's"):
        lab.tune(net=net[0], optimizer=Adam(net.parameters()))


@pytest.mark.parametrize(
    ("hyperparameter", "message"),
    [
        (lambda: InputNoise(init=0.0), "`init` of 'input_noise' must be in"),
        (lambda: InputNoise(low=0.0), "`low` and `high` of 'input_noise' must be in increasing"),
        (lambda: Dropout(high=1.0), "between 0 and 1.0 with scale='logit'"),
        (
            lambda: Hyperparameter("x", init=1, low=0.1, high=2, scale="linear"),  # type: ignore[arg-type]
            "`scale` must be one of .*'softplus'.* but got 'linear'",
        ),
    ],
)
def test_hyperparameters_check_themselves(
    hyperparameter: Callable[[], Hyperparameter], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hyperparameter()


def test_an_unused_hyperparameter_is_named_before_the_first_step(lab: Lab) -> None:
    net = lab.net()
    before = copy.deepcopy(net.state_dict())
    unused = Hyperparameter("unused", init=0.5, low=0.1, high=1.0)
    tuner = lab.tune(net=net, hyperparameters=[InputNoise(), unused])
    with pytest.raises(ValueError, match="training loss does not depend on 'unused'"):
        tuner.step(lab.batches[0], lab.valid)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_constant_summand_is_named_too(lab: Lab) -> None:
    def with_constant(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
        return lab.loss(model, batch, {}) + h["constant"]

    constant = Hyperparameter("constant", init=0.5, low=0.1, high=1.0)
    tuner = lab.tune(hyperparameters=[constant], loss=with_constant, every=1)
    with pytest.raises(ValueError, match="gradient of the training loss .* on 'constant'"):
        tuner.step(lab.batches[0], lab.valid)


def test_noise_is_for_tensors_of_floating_point(lab: Lab) -> None:
    tokens = torch.arange(7)
    net = nn.Sequential(nn.Embedding(7, 3)).double()
    tuner = lab.tune(net=net, hyperparameters=[InputNoise()])
    with pytest.raises(TypeError, match="InputNoise .*the model's first input is torch.int64"):
        tuner.step((tokens, tokens % 3))
    attention = nn.MultiheadAttention(4, 1)
    with pytest.raises(ValueError, match="HiddenNoise found no activation modules"):
        lab.tune(net=attention, hyperparameters=[HiddenNoise()])
    tuner = lab.tune(
        net=nn.Sequential(attention),
        hyperparameters=[Dropout(modules=["0"])],
        loss=lambda model, batch, h: attention(*batch)[0].sum(),
    )
    rows = torch.randn(2, 4)
    with pytest.raises(TypeError, match="Dropout .*the output of MultiheadAttention is tuple"):
        tuner.step((rows, rows, rows))


def test_a_loader_is_not_a_batch(lab: Lab) -> None:
    loader = DataLoader(TensorDataset(*lab.valid))
    with pytest.raises(TypeError, match="`valid_batch` is a DataLoader: give itertools.cycle"):
        lab.tune().step(lab.batches[0], loader)
