"""Who else has a say in a step: schedulers of the learning rate, and scalers of gradients."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from optuna_ext import T1T2
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Batch
    from tests.online.t1t2.conftest import Lab


@pytest.mark.parametrize("options", [{}, {"trace": 0.9}, {"unroll": 2}])
def test_a_scheduler_may_step_before_or_after_the_update(
    lab: Lab, options: dict[str, Any]
) -> None:
    """It changes the betas, too."""
    found = []
    for first in (False, True):
        net = lab.net()
        optimizer = Adam(net.parameters())
        scheduler = OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
        tuner = T1T2(net, optimizer, [L2(), InputNoise()], n_steps=8, every=2, **options)
        for batch in lab.batches:
            tuner.backward(batch)
            optimizer.step()
            if first:
                scheduler.step()
            tuner.update(lab.valid if tuner.is_due else None)
            if not first:
                scheduler.step()
        found.append((tuner.schedule, tuner.hypergradients))
    assert found[0] == found[1]


def test_an_update_without_a_step_is_refused(lab: Lab) -> None:
    tuner = lab.tune()
    with pytest.raises(RuntimeError, match="`update` of step 1 must come after `backward` and"):
        tuner.update()
    tuner.backward(lab.batches[0])
    with pytest.raises(RuntimeError, match="and the optimizer's step"):
        tuner.update()


def explosive(model: nn.Module, batch: Any, h: Mapping[str, Tensor]) -> Tensor:
    x, y, factor = batch
    with torch.autocast(x.device.type, torch.float16):
        outputs = model(x)
    loss: Tensor = F.cross_entropy(outputs.float(), y) * factor
    return loss


def validate(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def in_float16(batch: Batch, device: str, factor: float = 1.0) -> tuple[Tensor, Tensor, float]:
    x, y = batch
    return x.float().to(device), y.to(device), factor


@pytest.mark.parametrize("kind", ["adam", "adamw", "fused"])
@pytest.mark.parametrize("options", [{}, {"unroll": 2}])
def test_a_step_that_the_scaler_leaves_out_changes_nothing(
    lab: Lab, kind: str, options: dict[str, Any], device: str
) -> None:
    net = lab.net(torch.float32).to(device)
    make = Adam if kind != "adamw" else AdamW
    optimizer = make(net.parameters(), 0.01, weight_decay=0.0, fused=kind == "fused")
    scaler = GradScaler(device, init_scale=1024.0)
    tuner = T1T2(
        net,
        optimizer,
        [L2(init=0.05), InputNoise()],
        loss=explosive,
        valid_loss=validate,
        n_steps=8,
        every=2,
        scaler=scaler,
        **options,
    )
    valid = in_float16(lab.valid, device)
    for i, batch in enumerate(lab.batches):
        before = [p.detach().clone() for p in net.parameters()]
        overflows = i in (3, 4)  # a step that is due, and one that is not
        tuner.step(in_float16(batch, device, math.inf if overflows else 1.0), valid)
        same = [torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)]
        assert all(same) if overflows else not any(same)
    assert scaler.get_scale() == 256.0
    assert tuner.n_skipped == 2  # both hyperparameters, once
    assert tuner.schedule.at(5) == tuner.schedule.at(4)
    assert tuner.schedule.at(7) != tuner.schedule.at(6)


@pytest.mark.parametrize("options", [{}, {"trace": 0.9}, {"unroll": 2}])
def test_scaling_takes_no_part_in_the_derivatives(lab: Lab, options: dict[str, Any]) -> None:
    found = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**10)):
        net = lab.net()
        given: dict[str, Any] = {"n_steps": 8, "every": 2, "scaler": scaler} | options
        tuner = T1T2(net, Adam(net.parameters()), lab.everything(), **given)
        for batch in lab.batches:
            tuner.step(batch, lab.valid)
        found.append(tuner.hypergradients)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("options", [{}, {"unroll": 2}])
def test_running_statistics_and_dropout_are_those_without_a_tuner(
    lab: Lab, options: dict[str, Any], amp: bool
) -> None:
    nets = []
    for is_tuned in (True, False):
        first, *others = lab.net(torch.float32)
        net = nn.Sequential(first, nn.BatchNorm1d(6), nn.Dropout(0.5), *others)
        optimizer = Adam(net.parameters())
        torch.manual_seed(0)
        noise = torch.Generator().manual_seed(7)
        given: dict[str, Any] = {"n_steps": 8, "every": 2, "amp": amp, "seed": 7} | options
        tuner = T1T2(net, optimizer, [InputNoise(init=0.3, low=0.2999, high=0.3)], **given)
        for x, y in lab.batches:
            if is_tuned:
                tuner.step((x.float(), y), (lab.valid[0].float(), lab.valid[1]))
                continue
            optimizer.zero_grad()
            e = torch.randn(x.shape, generator=noise)
            torch.autograd.backward(F.cross_entropy(net(x.float() + 0.3 * e), y))
            optimizer.step()
        nets.append(net)
    assert nets[0][1].num_batches_tracked == 8
    for name, value in nets[0].state_dict().items():
        assert torch.allclose(value, nets[1].state_dict()[name], atol=1e-3)
