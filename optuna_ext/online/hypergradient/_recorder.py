from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from optuna_ext.schedule import Schedule


class RateRecorder:
    """Writes down the learning rate of every step of an optimizer.

    Args:
        optimizer:
            Whose rates they are: ``lr``, or of several groups ``lr/0``, ``lr/1`` and so on.

    Example:
        >>> import torch
        >>> theta = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([theta], lr=0.1)
        >>> recorder = RateRecorder(optimizer)
        >>> optimizer.step()
        >>> recorder.schedule.at(1)
        {'lr': 0.1}
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._schedule = Schedule()
        optimizer.register_step_post_hook(self._note)

    @property
    def schedule(self) -> Schedule:
        """The rates so far."""
        return Schedule.from_dict(self._schedule.to_dict())

    def _note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        names = ["lr"] if len(groups) == 1 else [f"lr/{i}" for i in range(len(groups))]
        rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}
        self._schedule.record(self._schedule.last + 1, **rates)
