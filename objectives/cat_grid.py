"""Many networks of the cats' grid as one batched program.

Gradient descent changes the first layer's weights W only by multiples of the images, so it is
enough to follow its outputs Z = X W' on the 209 training images: a step changes W by -lr D' X,
where D is the gradient with respect to Z, and so Z by -lr X X' D. In place of 12,288 pixels there
is the 209 x 209 Gram matrix X X', which all networks share; their products with it are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import os

import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from objectives import cats
from objectives.nets import cat_net
from objectives.runs import Evaluation


@dataclass(frozen=True, kw_only=True)
class Network:
    """A point of the grid but for ``iterations``.

    Args:
        lr:
            Learning rate of gradient descent.
        hidden:
            Units of the two or three hidden layers.
    """

    lr: float
    hidden: tuple[int, ...]


def train_together(
    networks: Sequence[Network],
    *,
    iterations: int = 700,
    device: str | torch.device = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 1,
) -> list[dict[int, cats.Result]]:
    """Train networks as :func:`objectives.cats.train_curve` trains one.

    Layers behind the first may differ in width: they are padded by zeros, which stay zero under
    ReLU, so that the results are the same to rounding.

    Args:
        networks:
            At least one, all with as many layers and as many units in the first of them. Some 25
            fit into the cache of a CPU together.
        iterations:
            Steps of gradient descent, a multiple of 100.
        device:
            As for ``train_curve``.
        data_dir:
            As for ``train_curve``.
        seed:
            As for ``train_curve``.

    Returns:
        The results of each network after 0, 100, ..., ``iterations`` steps.

    Raises:
        ValueError: If ``iterations`` is no multiple of 100, the first layers differ, or there is
            no such ``device``.
        DataNotFoundError: If the files are not there; nobody may hand them out.
    """
    if iterations % cats.STEPS:
        raise ValueError(f"iterations must be a multiple of {cats.STEPS}, but it is {iterations}.")
    shapes = {(len(network.hidden), network.hidden[0]) for network in networks}
    if len(shapes) != 1:
        raise ValueError(f"networks must have equal first layers, but they have {shapes}.")
    program = _Program(networks, device=device, data_dir=data_dir, seed=seed)
    curves: list[dict[int, cats.Result]] = [{0: result} for result in program.evaluate()]
    for step in range(cats.STEPS, iterations + 1, cats.STEPS):
        for _ in range(cats.STEPS):
            program.step()
        for curve, result in zip(curves, program.evaluate(), strict=True):
            curve[step] = result
    return curves


class _Program:
    """The networks, features first: a layer's outputs are ``(networks, units, images)``."""

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        device: str | torch.device,
        data_dir: str | os.PathLike[str] | None,
        seed: int,
    ) -> None:
        images = cats.in_own_span(data_dir=data_dir)
        where = cats.float64_device(device)
        data = images.document.to(where)
        self._x, self._test = data.train_x, data.test_x
        self._y, self._test_y = (y.double() for y in (data.train_y, data.test_y))
        self._gram, self._cross = self._x @ self._x.T, self._x @ self._test.T
        nets = [cat_net(network.hidden, basis=images.basis, seed=seed) for network in networks]
        layers = [[m for m in net if isinstance(m, nn.Linear)] for net in nets]
        first = torch.stack([layer[0].weight.data for layer in layers]).to(where)
        self._start, self._test_start = first @ self._x.T, first @ self._test.T
        self._bias = first.new_zeros(*first.shape[:2], 1)
        self._moved = torch.zeros_like(self._start)  # what steps added to W, in multiples of X
        self._weights = [
            _padded([layer[i].weight.data for layer in layers]).to(where)
            for i in range(1, len(layers[0]))
        ]
        self._biases = [first.new_zeros(*weight.shape[:2], 1) for weight in self._weights]
        rates = [network.lr for network in networks]
        self._minus_lr = -torch.tensor(rates, dtype=torch.float64, device=where)[:, None, None]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step of gradient descent on all images."""
        outputs = self._forward(self._start, self._gram)
        gradient = (torch.sigmoid(outputs.pop()) - self._y) / len(self._y)
        for i in reversed(range(len(self._weights))):
            inputs = outputs.pop()
            below = torch.bmm(self._weights[i].mT, gradient).mul_(inputs > 0)
            step = torch.bmm(gradient, inputs.mT)
            self._weights[i].addcmul_(step, self._minus_lr)
            self._biases[i].addcmul_(gradient.sum(2, keepdim=True), self._minus_lr)
            gradient = below
        self._moved.addcmul_(gradient, self._minus_lr)
        self._bias.addcmul_(gradient.sum(2, keepdim=True), self._minus_lr)

    def _forward(self, start: Tensor, products: Tensor) -> list[Tensor]:
        """Return the outputs of all layers, those of the last as log-odds.

        Args:
            start:
                The first layer's outputs before any step.
            products:
                Of the training images with those that are put in.
        """
        n, units, images = self._moved.shape
        moved = self._moved.view(n * units, images) @ products
        outputs = [moved.view(n, units, -1).add_(start).add_(self._bias)]
        for weight, bias in zip(self._weights, self._biases, strict=True):
            outputs.append(torch.baddbmm(bias, weight, outputs[-1].relu_()))
        return outputs

    @torch.no_grad()
    def evaluate(self) -> list[cats.Result]:
        """Measure all networks."""
        train = _evaluations(self._forward(self._start, self._gram)[-1], self._y)
        test = _evaluations(self._forward(self._test_start, self._cross)[-1], self._test_y)
        return [cats.Result(train=one, test=two) for one, two in zip(train, test, strict=True)]


def _padded(weights: Sequence[Tensor]) -> Tensor:
    """Stack matrices of several sizes, filled up with zeros."""
    rows, columns = (max(weight.shape[dim] for weight in weights) for dim in (0, 1))
    return torch.stack(
        [F.pad(w, (0, columns - w.shape[1], 0, rows - w.shape[0])) for w in weights]
    )


def _evaluations(outputs: Tensor, y: Tensor) -> list[Evaluation]:
    log_odds = outputs[:, 0]
    targets = y.expand_as(log_odds)
    losses = F.binary_cross_entropy_with_logits(log_odds, targets, reduction="none").mean(1)
    right = ((log_odds > 0) == (targets > 0)).sum(1)
    return [
        Evaluation(loss=loss, accuracy=count / len(y))
        for loss, count in zip(losses.tolist(), right.tolist(), strict=True)
    ]
