from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from optuna_ext.fused import binary_cross_entropy
from optuna_ext.fused import cross_entropy


def test_binary_cross_entropy_is_torch_s() -> None:
    outputs = torch.linspace(-60, 60, 101, dtype=torch.float64)[:, None].requires_grad_()
    for y in (torch.zeros(101), torch.ones(101)):
        found = binary_cross_entropy(outputs, y)
        expected = F.binary_cross_entropy_with_logits(outputs[:, 0], y.double(), reduction="none")
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(
            torch.autograd.grad(found.sum(), outputs),
            torch.autograd.grad(expected.sum(), outputs),
            rtol=1e-14,
            atol=1e-14,
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("tensor", [False, True])
def test_cross_entropy_is_torch_s(smoothing: float, tensor: bool) -> None:
    outputs = 10 * torch.randn(50, 7, dtype=torch.float64)
    y = torch.randint(7, (50,))
    given = torch.tensor(smoothing, dtype=torch.float64) if tensor else smoothing
    torch.testing.assert_close(
        cross_entropy(outputs, y, label_smoothing=given),
        F.cross_entropy(outputs, y, label_smoothing=smoothing, reduction="none"),
    )
