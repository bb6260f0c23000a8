from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from optuna_ext.fused._rewritten import Rewritten


CLASSES = torch.tensor([[0, 1, 2, -100], [1, 1, -100, 0]])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def losses_and_gradients(function: Any, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = outputs.clone().requires_grad_()
    losses = vmap(function)(leaf, y)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def assert_rewriting_changes_nothing(function: Any, outputs: Tensor, y: Tensor) -> None:
    expected = losses_and_gradients(function, outputs, y)
    with Rewritten():
        found = losses_and_gradients(function, outputs, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum"},
        {"reduction": "none", "ignore_index": 1},
        {"label_smoothing": 0.1},
        {"weight": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)},
    ],
)
def test_cross_entropy(options: dict[str, Any]) -> None:
    # So far apart that the exponential of a difference is not a number in float64.
    outputs = 500 * torch.randn(2, 4, 3, dtype=torch.float64)
    y = CLASSES.clamp(min=0) if "ignore_index" in options else CLASSES
    assert_rewriting_changes_nothing(lambda z, y: F.cross_entropy(z, y, **options), outputs, y)
    soft = torch.rand(2, 4, 3, dtype=torch.float64)
    if "ignore_index" not in options:
        assert_rewriting_changes_nothing(
            lambda z, y: F.cross_entropy(z, y, **options), outputs, soft
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum"},
        {"pos_weight": torch.tensor(3.0, dtype=torch.float64)},
    ],
)
def test_binary_cross_entropy(options: dict[str, Any]) -> None:
    log_odds = torch.tensor([[0.0, 1.0, -30.0, 45.0, 1e5], [-1e5, 21.0, -50.0, 3.0, -2.0]])
    for y in (torch.rand(2, 5), torch.ones(2, 5), torch.zeros(2, 5)):
        assert_rewriting_changes_nothing(
            lambda z, y: F.binary_cross_entropy_with_logits(z, y, **options),
            log_odds.double(),
            y.double(),
        )


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    weight = torch.randn(2, 3, 5, dtype=torch.float64)
    offsets = torch.randn(3, dtype=torch.float64) if bias else None
    for shape in ((2, 7, 5), (2, 4, 7, 5), (2, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        assert_rewriting_changes_nothing(lambda w, x: F.linear(x, w, offsets), weight, x)


@pytest.mark.parametrize("shared", [True, False])
def test_convolutions_and_pooling(shared: bool) -> None:
    weight = torch.randn(2, 6, 2, 3, 3, dtype=torch.float64)
    # Ties, of which the first gets the gradient, and rows and columns that are left over.
    images = torch.randn(2, 4, 4, 7, 5, dtype=torch.float64).mul(2).round()

    def network(weight: Tensor, x: Tensor) -> Tensor:
        h = F.relu(F.conv2d(x, weight, padding=1, groups=2))
        return F.max_pool2d(F.max_pool2d(h, 2), 2, stride=1, ceil_mode=True)

    if shared:
        assert_rewriting_changes_nothing(lambda w, _: network(w, images[0]), weight, images)
    else:
        assert_rewriting_changes_nothing(network, weight, images)


def test_a_network_deeper_than_one_convolution() -> None:
    x = torch.randn(3, 4, 1, 8, 8, dtype=torch.float64)
    weights = torch.randn(3, 5, 1, 3, 3, dtype=torch.float64)

    def network(weight: Tensor, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.conv2d(x, weight), 2).relu()
        return F.max_pool2d(F.conv2d(h, weight.expand(5, 5, 3, 3)), 1).flatten(1)

    assert_rewriting_changes_nothing(network, weights, x)
