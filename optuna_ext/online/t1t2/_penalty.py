"""L2 at work in a training step."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._hyperparameters import L2
from optuna_ext.online.t1t2._inner import groups_of
from optuna_ext.online.t1t2._inner import is_decoupled


class Penalty:
    """Decays weights as the optimizer would: by the gradient, or with AdamW beside it.

    Args:
        model: Whose weights they are.
        optimizer: Must not decay them, too.
        hyperparameters: Those among them that are L2 say which weights.

    Attributes:
        names: The name of the number of each weight that is decayed.
        rates: The learning rate of each weight that was decayed in the last step.

    Raises:
        ValueError: If the optimizer does not have such a weight, or decays it.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, hyperparameters: Sequence[Hyperparameter]
    ) -> None:
        self._optimizer = optimizer
        self._decouples = is_decoupled(optimizer)
        self.names: dict[Tensor, str] = {}
        self.rates: dict[Tensor, float] = {}
        for hyperparameter in hyperparameters:
            if isinstance(hyperparameter, L2):
                for name, params in hyperparameter.layers(model).items():
                    self.names |= dict.fromkeys(params, name)
        groups = groups_of(optimizer)
        for p in self.names:
            if p not in groups:
                raise ValueError("L2 is to decay a weight that the optimizer does not have.")
            if groups[p]["weight_decay"] != 0:
                raise ValueError(
                    "L2 takes the place of the optimizer's weight decay: build "
                    f"{type(optimizer).__name__} with weight_decay=0 instead of "
                    f"{groups[p]['weight_decay']}."
                )

    @torch.no_grad()
    def add_to_gradients(self, values: Mapping[str, float]) -> None:
        """Add what the penalty makes of the gradients, if it does."""
        if not self._decouples:
            for p, name in self.names.items():
                if p.grad is not None:
                    p.grad.add_(p, alpha=values[name])

    @torch.no_grad()
    def before_step(self, values: Mapping[str, float]) -> None:
        """Note the learning rates, and decay the weights if that is beside the gradients."""
        groups = groups_of(self._optimizer)
        self.rates = {p: float(groups[p]["lr"]) for p in self.names if p.grad is not None}
        if self._decouples:
            for p, rate in self.rates.items():
                p.mul_(1 - rate * values[self.names[p]])
