"""The step of a small stack with every unit spelled out, for a compiler.

Written so, all operations have the shape ``(slots, rows)``, and Inductor makes one loop over the
members of them, in which the rows of a member and its activations stay in the cache. It does so
only as long as nothing but sums over rows, kept as columns, comes after them. Matrix products
would stay calls.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
import functools
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.func import vmap

from optuna_ext.fused._losses import mean_loss


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Where a layer lies in the matrix of the parameters.

    Args:
        weight:
            The first column of the weights, which are in rows.
        bias:
            The first column of the biases, if there are any.
        inputs:
            Units below.
        outputs:
            Units.
        relu:
            Whether the activation is ReLU or tanh; ``None`` if there is none.
    """

    weight: int
    bias: int | None
    inputs: int
    outputs: int
    relu: bool | None

    def units(self, flat: Tensor) -> tuple[list[list[Tensor]], list[Tensor | None]]:
        """The weights and biases, each a column ``(slots, 1)``."""
        columns = torch.split(flat, 1, 1)
        first = range(self.weight, self.weight + self.inputs * self.outputs, self.inputs)
        weights = [[*columns[row : row + self.inputs]] for row in first]
        if self.bias is None:
            return weights, [None] * self.outputs
        return weights, [*columns[self.bias : self.bias + self.outputs]]


Step = Callable[..., tuple[Tensor, Tensor]]

_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    "max_fusion_size": 512,  # operations in one loop: by default some that need the rows are left
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum in one instruction
}


@functools.lru_cache(maxsize=64)
def compiled(layers: tuple[Dense, ...], loss: Callable[..., Tensor]) -> Step:
    """Give a function for losses and gradients, which is compiled at its first call.

    It is good for any numbers of members and rows above one, so that populations that grow, shrink
    or are one of several folds do not wait for the compiler again.

    It takes parameters ``(slots, P)``, all inputs ``(features, n)``, all targets ``(n, ...)``,
    which of them, as a ``Batch`` has them, which of these are live, and the arguments of the loss.
    It gives losses ``(slots,)`` and gradients ``(slots, P)``.
    """

    def step(
        flat: Tensor, inputs: Tensor, targets: Tensor, rows: Any, live: Any, hyper: Any
    ) -> tuple[Tensor, Tensor]:
        units = [layer.units(flat) for layer in layers]
        x, y = (inputs, targets) if rows is None else (inputs[:, rows], targets[rows])
        x = x.as_strided(x.shape, x.stride())  # makes Inductor take them once, not for each use
        values = [[*x.unbind()]]
        for layer, (weights, biases) in zip(layers, units, strict=True):
            below = values[-1]
            values.append(
                [
                    _activated(_product(own, below, bias), layer.relu)
                    for own, bias in zip(weights, biases, strict=True)
                ]
            )
        outputs = torch.stack(values.pop(), 2)
        dims = (0, None if x.dim() == 2 else 0, None if live is None else 0, 0)

        def total(outputs: Tensor) -> tuple[Tensor, Tensor]:
            losses = vmap(functools.partial(mean_loss, loss), in_dims=dims)(
                outputs, y, live, hyper
            )
            return losses.sum(), losses

        gradient, (_, losses) = grad_and_value(total, has_aux=True)(outputs)
        upstream = [*gradient.unbind(2)]
        found: dict[int, Tensor] = {}
        for index in reversed(range(len(layers))):
            layer, below = layers[index], values[index]
            for o, own in enumerate(upstream):
                for i, h in enumerate(below):
                    found[layer.weight + o * layer.inputs + i] = (own * h).sum(1, keepdim=True)
                if layer.bias is not None:
                    found[layer.bias + o] = own.sum(1, keepdim=True)
            if index:
                columns = zip(*units[index][0], strict=True)
                upstream = [
                    _before_activation(_product(column, upstream, None), h, layers[index - 1].relu)
                    for h, column in zip(below, columns, strict=True)
                ]
        return losses, torch.cat([found[column] for column in range(len(found))], 1)

    # What the compiler knows hangs on the code object, of which it allows only a few versions.
    step.__code__ = step.__code__.replace()
    return torch.compile(step, dynamic=True, options=_OPTIONS)


def _product(weights: Sequence[Tensor], values: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    z = weights[0] * values[0] if bias is None else bias + weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        z = z + weight * value
    return z


def _activated(z: Tensor, relu: bool | None) -> Tensor:
    if relu is None:
        return z
    return torch.relu(z) if relu else torch.tanh(z)


def _before_activation(upstream: Tensor, h: Tensor, relu: bool | None) -> Tensor:
    """The gradient before an activation that gave ``h``."""
    return torch.where(h <= 0, 0, upstream) if relu else (1 - h * h) * upstream
