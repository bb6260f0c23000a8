"""What a hyperparameter is, and the one that acts on the gradient: L2."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
import math
from typing import Any
from typing import Literal

import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F


Scale = Literal["log", "logit", "softplus"]
Batch = Any

# How a number is described by a raw one without bounds, and how that is found.
_VALUE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.exp,
    "logit": torch.sigmoid,
    "softplus": F.softplus,
}
_RAW: dict[str, Callable[[float], float]] = {
    "log": math.log,
    "logit": lambda value: math.log(value / (1 - value)),
    "softplus": lambda value: value + math.log(-math.expm1(-value)),
}


class Hyperparameter:
    """A number in the training loss, for :class:`~optuna_ext.T1T2` to tune.

    This class does nothing by itself: the loss given to the tuner finds the value in its third
    argument, under ``name``, as a tensor of no dimensions. Anything differentiable will do: the
    weight of a loss term, a temperature, the strength of an augmentation.

    Example:

        .. testcode::

            import torch
            from torch.nn.functional import huber_loss, mse_loss
            from optuna_ext import T1T2
            from optuna_ext.online.t1t2 import Hyperparameter

            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


            def loss(model, batch, h):
                x, y = batch
                return mse_loss(model(x), y) + h["roughness"] * model.weight.abs().sum()


            tuner = T1T2(
                model,
                optimizer,
                [Hyperparameter("roughness", init=0.1, low=1e-4, high=10.0)],
                loss=loss,
                valid_loss=lambda model, batch: mse_loss(model(batch[0]), batch[1]),
                n_steps=20,
            )
            x = torch.randn(64, 4)
            for _ in range(20):
                tuner.step((x, x[:, :1]), (x, x[:, :1]))
            print(tuner.values)

    Args:
        name:
            What it is called in the loss and in the schedule.
        init:
            Its first value, between ``low`` and ``high``.
        low:
            Its least value.
        high:
            Its greatest value.
        scale:
            ``"log"`` (positive numbers that span decades), ``"softplus"`` (positive numbers) or
            ``"logit"`` (shares between 0 and 1).

    Raises:
        ValueError: If a number is out of the scale's domain or ``init`` out of bounds.
    """

    def __init__(
        self, name: str, *, init: float, low: float, high: float, scale: Scale = "log"
    ) -> None:
        if scale not in _VALUE:
            raise ValueError(f"`scale` must be one of {list(_VALUE)}, but got {scale!r}.")
        top = 1.0 if scale == "logit" else math.inf
        if not 0 < low < high < top:
            raise ValueError(
                f"`low` and `high` of {name!r} must be in increasing order between 0 and {top} "
                f"with scale={scale!r}, but got {low} and {high}."
            )
        if not low <= init <= high:
            raise ValueError(f"`init` of {name!r} must be in [{low}, {high}], but got {init}.")
        self.name = name
        self.init = init
        self.low = low
        self.high = high
        self.scale = scale

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of the raw number."""
        return _RAW[self.scale](self.low), _RAW[self.scale](self.high)

    def names(self, model: nn.Module) -> list[str]:
        """Return what its numbers for a model are called; nearly always one."""
        del model
        return [self.name]

    def to_raw(self, value: float) -> float:
        """Return the raw number of a value, which is moved into the bounds."""
        return _RAW[self.scale](min(max(value, self.low), self.high))

    def to_value(self, raw: Tensor) -> Tensor:
        """Return the values of raw numbers."""
        return _VALUE[self.scale](raw)

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Return what the loss sees of a training batch."""
        del value, generator
        return batch

    @contextmanager
    def perturb(
        self, model: nn.Module, value: Tensor, generator: torch.Generator
    ) -> Iterator[None]:
        """Disturb the model while the training loss of a batch is computed."""
        del model, value, generator
        yield


class L2(Hyperparameter):
    """Weight of the L2 penalty ``l2 / 2 * |theta|^2`` on the weights, but not the biases.

    With AdamW the decay is decoupled from the gradient, as there; with the other optimizers it is
    coupled. The derivative is exact in both cases and costs one product per weight.

    Args:
        per_layer:
            Whether every layer has a weight of its own. A weight that several layers share
            belongs to the first.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self,
        *,
        per_layer: bool = False,
        init: float = 1e-4,
        low: float = 1e-7,
        high: float = 1e-1,
    ) -> None:
        super().__init__("l2", init=init, low=low, high=high)
        self.per_layer = per_layer

    def layers(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the decayed weights by the name of their number.

        Raises:
            ValueError: If there are none.
        """
        layers: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():  # shared weights come once
            if parameter.requires_grad and parameter.dim() >= 2:
                layer = name.rpartition(".")[0] or name
                layers.setdefault(f"l2/{layer}" if self.per_layer else "l2", []).append(parameter)
        if not layers:
            raise ValueError("L2 has nothing to decay: the model has no trainable weight matrix.")
        return layers

    def names(self, model: nn.Module) -> list[str]:
        """Return one name per layer, or one for all."""
        return list(self.layers(model))
