from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Adam

from optuna_ext import T1T2
from optuna_ext.online.t1t2 import Hyperparameter
from optuna_ext.online.t1t2 import InputNoise
from optuna_ext.online.t1t2 import L2


@pytest.mark.parametrize(
    ("capability", "units", "dtype", "given", "expected"),
    [
        ("avx512_bf16", 512, torch.float32, {}, True),
        ("amx_bf16", 512, torch.float32, {}, True),
        ("avx512_f", 512, torch.float32, {}, False),
        ("avx512_bf16", 500, torch.float32, {}, False),
        ("avx512_bf16", 512, torch.float64, {}, False),
        ("avx512_bf16", 512, torch.float32, {"scaler": GradScaler("cpu")}, False),
        ("avx512_bf16", 512, torch.float32, {"amp": False}, False),
        ("avx512_f", 500, torch.float32, {"amp": True}, True),
    ],
)
def test_bfloat16_is_for_large_nets_on_cpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    units: int,
    dtype: torch.dtype,
    given: dict[str, Any],
    expected: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    net = nn.Linear(units, 512, dtype=dtype)
    assert T1T2(net, Adam(net.parameters()), [L2()], n_steps=1, **given).amp is expected


def test_a_torch_that_does_not_tell_tunes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    net = nn.Linear(512, 512)
    assert not T1T2(net, Adam(net.parameters()), [L2()], n_steps=1).amp


def test_what_only_tuning_needs_is_in_bfloat16_and_nothing_else() -> None:
    seen: list[tuple[bool, torch.dtype]] = []

    class Spy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append((self.training, y.dtype))
            return y

    torch.manual_seed(0)
    net = Spy(5, 3)
    tuner = T1T2(net, Adam(net.parameters()), [InputNoise()], n_steps=2, every=2, amp=True)
    batch = torch.randn(12, 5), torch.arange(12) % 3
    for _ in range(2):
        tuner.step(batch, batch)
    assert seen == [
        (True, torch.bfloat16),  # the check whether the loss depends on the noise
        (True, torch.float32),
        (True, torch.float32),
        (True, torch.bfloat16),
        (False, torch.bfloat16),
    ]


class Gathered(nn.Linear):
    """Adds up rows in one of three places, for which autocast does not make types equal."""

    def __init__(self, place: str) -> None:
        torch.manual_seed(0)
        super().__init__(512, 512)
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.place == "backward":
            y.register_hook(_gathered)  # type: ignore[no-untyped-call]
        return _gathered(y) if self.place == ("training" if self.training else "eval") else y


def _gathered(x: Tensor) -> Tensor:
    return torch.zeros(x.shape).index_add(0, torch.arange(len(x)), x)


@pytest.fixture
def has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)


@pytest.mark.usefixtures("has_bfloat16")
@pytest.mark.parametrize(
    ("place", "hyperparameters"),
    [
        ("training", [L2(), InputNoise()]),
        ("backward", [L2(), InputNoise()]),
        ("eval", [L2(), InputNoise()]),
        ("eval", [L2()]),
    ],
)
def test_a_model_that_fails_in_bfloat16_is_tuned_without(
    place: str, hyperparameters: list[Hyperparameter], caplog: pytest.LogCaptureFixture
) -> None:
    batch = torch.randn(4, 512), torch.arange(4)
    tuned = []
    for amp in (None, False):
        net = Gathered(place)
        tuner = T1T2(net, Adam(net.parameters()), hyperparameters, n_steps=3, every=1, amp=amp)
        assert tuner.amp is (amp is None)
        for _ in range(3):
            tuner.step(batch, batch)
        assert not tuner.amp
        tuned.append(tuner)
    assert caplog.text.count("T1T2 goes on without bfloat16, in which the model fails") == 1
    assert tuned[0].hypergradients == pytest.approx(tuned[1].hypergradients, rel=0.01)


def test_bfloat16_that_was_asked_for_fails() -> None:
    net = Gathered("eval")
    tuner = T1T2(net, Adam(net.parameters()), [L2()], n_steps=1, every=1, amp=True)
    batch = torch.randn(4, 512), torch.arange(4)
    with pytest.raises(RuntimeError, match="index_add"):
        tuner.step(batch, batch)


@pytest.mark.usefixtures("has_bfloat16")
def test_mistakes_are_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Linear(512, 512)
    tuner = T1T2(net, Adam(net.parameters()), [InputNoise()], n_steps=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        tuner.step((torch.randn(4, 3), torch.arange(4)))
    assert caught.value.__context__ is None
    assert not caplog.records
