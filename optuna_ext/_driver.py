from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import Protocol
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from optuna_ext.schedule import Schedule

_BETAS = {"beta1": 0, "beta2": 1}


class Optimizer(Protocol):
    """What is driven: every optimizer of torch is one."""

    param_groups: list[dict[str, Any]]


class Driver:
    """Sets an optimizer's options step by step, used like a learning rate scheduler of torch.

    Args:
        schedule:
            What to follow.
        optimizer:
            Whose options to set.
        names:
            As for :meth:`Schedule.drive`.
        step:
            As for :meth:`Schedule.drive`.

    Raises:
        ValueError: If no hyperparameter is an option of the optimizer.
    """

    def __init__(
        self, schedule: Schedule, optimizer: Optimizer, *, names: Mapping[str, str], step: int
    ) -> None:
        self._schedule = schedule
        self._optimizer = optimizer
        self._names = names
        known = {option for group in optimizer.param_groups for option in group} - {"params"}
        known |= {*_BETAS} if "betas" in known else set()
        if not any(names.get(name, name) in known for name in schedule.names):
            raise ValueError(
                f"the schedule has {schedule.names}, but the optimizer's options are "
                f"{sorted(known)}: `names` must tell which is which."
            )
        self._trained = step
        self._apply()

    def step(self) -> None:
        """Say that a step was trained, and set the values of the next one."""
        self._trained += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the learning rates that hold now, one per parameter group."""
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """Return the step after which the training stands."""
        return {"step": self._trained}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self._trained = state["step"]
        self._apply()

    def _apply(self) -> None:
        values = self._schedule.at(min(self._trained + 1, self._schedule.last))
        for group in self._optimizer.param_groups:
            for name, value in values.items():
                _set(group, self._names.get(name, name), value)


def _set(group: dict[str, Any], option: str, value: Any) -> None:
    if option in _BETAS and "betas" in group:
        betas = list(group["betas"])
        betas[_BETAS[option]] = value
        group["betas"] = tuple(betas)
    elif option == "params" or option not in group:
        return
    elif hasattr(group[option], "fill_"):  # a tensor, which a compiled optimizer goes on reading
        group[option].fill_(value)
    else:
        group[option] = value
