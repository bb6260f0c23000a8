from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field

from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network to train, with everything that may differ from its neighbors'.

    Args:
        model:
            The network, on the CPU, with its first weights. It is not changed.
        optimizer:
            An optimizer of ``model.parameters()``: its class and parameter groups say how to
            train. Parameters that need no gradient are taken out of it.
        batch_size:
            Rows per step; the last batch of a pass may be shorter. ``None`` means all rows.
        seed:
            Fixes the order of the rows and what is random in the layers.
        hyper:
            Numbers that the loss takes as keyword arguments, such as ``label_smoothing``.
        schedule:
            Gives the factor of the learning rates in an epoch, which counts from 0; by default 1.

    Raises:
        ValueError: If ``batch_size`` is below 1, or there is nothing to train.
    """

    model: nn.Module
    optimizer: Optimizer
    batch_size: int | None = None
    seed: int = 0
    hyper: Mapping[str, float] = field(default_factory=dict)
    schedule: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but it is {self.batch_size}.")
        groups = self.optimizer.param_groups
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        groups[:] = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError("optimizer must have a parameter that needs a gradient.")
