from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Adam

from optuna_ext import T1T2
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
