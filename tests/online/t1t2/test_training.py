from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import SGD

from optuna_ext import Schedule
from optuna_ext import T1T2
from optuna_ext.online.t1t2 import HiddenNoise
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2
from optuna_ext.online.t1t2 import LabelSmoothing


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Lab
    from tests.online.t1t2.conftest import MakeOptimizer

K = 4


def test_a_look_at_the_loss_leaves_running_statistics_alone(lab: Lab) -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    tuner = T1T2(net, SGD(net.parameters(), 0.1), [InputNoise()], n_steps=2, every=2)
    for batch in lab.batches[:2]:
        tuner.step(batch, lab.valid)
    assert net[0].num_batches_tracked == 2


def test_l2_trains_as_the_optimizers_own_weight_decay(
    lab: Lab, make_optimizer: MakeOptimizer
) -> None:
    net, twin = lab.net(), lab.net()
    tuner = T1T2(
        net,
        make_optimizer(net.parameters()),
        [L2()],
        schedule=Schedule({1: {"l2": 0.05}}),
    )
    plain = make_optimizer(
        [
            {"params": [p for p in twin.parameters() if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in twin.parameters() if p.dim() == 1]},
        ]
    )
    for x, y in lab.batches:
        tuner.step((x, y))
        plain.zero_grad()
        torch.autograd.backward(F.cross_entropy(twin(x), y))
        plain.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12)


def test_the_three_parts_are_the_step(lab: Lab) -> None:
    nets = lab.net(), lab.net()
    tuners = [T1T2(n, Adam(n.parameters()), [InputNoise()], n_steps=8, every=2) for n in nets]
    for batch in lab.batches:
        whole = tuners[0].step(batch, lab.valid)
        part = tuners[1].backward(batch)
        tuners[1].optimizer.step()
        tuners[1].update(lab.valid if tuners[1].is_due else None)
        assert torch.equal(whole, part)
    assert tuners[0].schedule == tuners[1].schedule


def test_a_schedule_is_followed_and_nothing_is_tuned(lab: Lab) -> None:
    net = lab.net()
    make = lab.everything
    tuner = T1T2(net, Adam(net.parameters()), make(), n_steps=8, every=2)
    for batch in lab.batches:
        tuner.step(batch, lab.valid)
    again = lab.net()
    follower = T1T2(again, Adam(again.parameters()), make(), schedule=tuner.schedule)
    for batch in lab.batches:
        assert not follower.is_due
        follower.step(batch)
    for step in range(1, 9):
        assert follower.schedule.at(step) == pytest.approx(tuner.schedule.at(step))
    for p, q in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.allclose(p, q)


def test_validation_is_without_noise_and_in_evaluation_mode(lab: Lab) -> None:
    seen: list[tuple[bool, Tensor]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, x.detach().clone()))
            return super().forward(x)

    net = nn.Sequential(nn.BatchNorm1d(5), Spy(5, 3)).double()
    net[0].eval()  # frozen statistics stay frozen
    optimizer = SGD(net.parameters(), 1e-9)
    tuner = T1T2(net, optimizer, [HiddenNoise(modules=["0"])], n_steps=1, every=1)
    tuner.step(lab.batches[0], lab.valid)
    (checked, _), (trained, noisy), (validated, clean) = seen
    assert (checked, trained, validated) == (True, True, False)
    assert torch.allclose(clean, lab.valid[0], rtol=1e-4)  # but for batch norm's epsilon
    assert not torch.allclose(noisy, lab.batches[0][0], rtol=1e-2)
    assert [module.training for module in net] == [False, True]


def test_frozen_layers_and_shared_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = nn.Embedding(7, 4)
            self.hidden = nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4)
            self.frozen.requires_grad_(False)
            self.out = nn.Linear(4, 7, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.out(self.frozen(torch.tanh(self.hidden(self.embedding(tokens)))))
            return result

    net = Tied().double()
    before = copy.deepcopy(net.frozen.state_dict())
    hyperparameters = [L2(per_layer=True, init=1e-3), HiddenNoise(modules=["hidden"])]
    tuner = T1T2(net, Adam(net.parameters(), 0.01), hyperparameters, n_steps=20, every=2)
    tokens = torch.arange(7)
    for _ in range(20):
        tuner.step((tokens, tokens.roll(1)), (tokens, tokens.roll(1)))
    assert list(tuner.values) == ["l2/embedding", "l2/hidden", "hidden_noise"]
    assert all(torch.equal(before[name], p) for name, p in net.frozen.state_dict().items())
    assert net.out.weight is net.embedding.weight
    assert tuner.n_skipped == 0


def test_batches_of_t2_may_come_from_an_iterator(lab: Lab) -> None:
    net = lab.net()
    tuner = T1T2(net, Adam(net.parameters()), [L2()], n_steps=8, every=2)
    valid = iter([lab.valid, lab.valid])
    for batch in lab.batches[:5]:
        tuner.step(batch, valid)
    with pytest.raises(ValueError, match="Step 6 needs a batch of T2, but there is none"):
        tuner.step(lab.batches[5], valid)


@pytest.mark.parametrize("unroll", [1, 2])
def test_tuning_in_bfloat16_leaves_training_alone(lab: Lab, unroll: int) -> None:
    """What is random is drawn as in the step, though its inputs are in bfloat16 then."""
    results = []
    for amp in (False, True):
        net = lab.net(torch.float32)
        tuner = T1T2(
            net,
            SGD(net.parameters(), 0.1),
            [*lab.everything(), HiddenNoise(modules=["0"], init=0.3)],
            n_steps=K,
            every=K,
            unroll=unroll,
            amp=amp,
        )
        for x, y in lab.batches[:K]:
            tuner.step((x.float(), y), (lab.valid[0].float(), lab.valid[1]))
        results.append((nn.utils.parameters_to_vector(net.parameters()), tuner.hypergradients))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=0.1, abs=1e-4)
    assert results[0][1] != results[1][1]


def test_it_keeps_a_net_from_learning_by_heart(device: str) -> None:
    """Few rows with much noise: from almost no regularization it finds enough of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 20, generator=generator)
    y = (x[:, :3].sum(1) + torch.randn(2400, generator=generator) > 0).long()
    x, y = x.to(device), y.to(device)
    t2, test = (x[200:400], y[200:400]), (x[400:], y[400:])
    start = {"l2": 1e-6, "input_noise": 0.05}
    losses = []
    for schedule in (None, Schedule({1: start})):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 2)).to(device)
        tuner = T1T2(
            net,
            Adam(net.parameters(), 3e-3),
            [L2(init=1e-6), InputNoise(init=0.05)],
            n_steps=None if schedule else 600,
            every=5,
            schedule=schedule,
        )
        for i in range(600):
            rows = slice(i % 4 * 50, i % 4 * 50 + 50)
            tuner.step((x[rows], y[rows]), t2)
        with torch.no_grad():
            losses.append(F.cross_entropy(net(test[0]), test[1]).item())
    assert losses[0] < 0.7 * losses[1]


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 2)])
def test_labels_of_pixels_have_their_classes_in_the_second_dimension(
    shape: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(shape[0], 3, *shape[1:], generator=generator)
    y = torch.randint(3, shape, generator=generator)
    _, soft = LabelSmoothing(3).transform((outputs, y), torch.tensor(0.2), generator)
    expected = F.cross_entropy(outputs, y, label_smoothing=0.2)
    assert F.cross_entropy(outputs, soft).item() == pytest.approx(expected.item())
