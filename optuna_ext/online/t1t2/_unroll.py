"""The derivative through several steps."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.t1t2._inner import is_decoupled
from optuna_ext.online.t1t2._inner import SmoothStep
from optuna_ext.online.t1t2._inner import stored
from optuna_ext.online.t1t2._step import copied
from optuna_ext.online.t1t2._step import Group
from optuna_ext.online.t1t2._step import Moment


# The gradients of the training loss at a moment, by the names of the parameters given.
Gradients = Callable[[Moment, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class _Step:
    moment: Moment
    groups: dict[str, Group]
    rates: dict[str, float]


class LastSteps:
    """The last few steps, made once more in one graph when the derivative is due.

    Until then there is only what is needed to make them: where the parameters and the optimizer's
    state were, and the batches, which can be saved.

    Args:
        optimizer:
            Whose steps they are.
        params:
            The trainable parameters by name.
        decayed:
            The name of the L2 weight of the parameters that have one.
        gradients:
            Computes those of a moment.
        n:
            How many.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Mapping[str, Tensor],
        decayed: Mapping[Tensor, str],
        *,
        gradients: Gradients,
        n: int,
    ) -> None:
        self._optimizer = optimizer
        self._params = params
        self._names = {p: name for name, p in params.items()}
        self._decayed = {self._names[p]: name for p, name in decayed.items()}
        self._decouples = is_decoupled(optimizer)
        self._gradients = gradients
        self._n = n
        self._start: dict[str, Tensor] = {}
        self._state: dict[str, dict[str, Tensor]] = {}
        self._steps: list[_Step] = []

    def watches(self, steps_to_go: int) -> bool:
        """Return whether a step so far from the next update must be watched."""
        return steps_to_go < self._n

    def begin(self, moment: Moment) -> None:
        """Take what the training loss is about to be computed from."""
        if not self._steps:
            self._start = {name: p.detach().clone() for name, p in self._params.items()}
            self._state = {name: stored(self._optimizer, p) for name, p in self._params.items()}
        self._moment = Moment(copied(moment.batch), moment.randomness)

    def advance(self, groups: Mapping[Tensor, Group], rates: Mapping[Tensor, float]) -> None:
        """Note that the optimizer has made its step.

        Args:
            groups: The options of each parameter in it.
            rates: The learning rate of L2 for what it has decayed.
        """
        by_name = {self._names[p]: group for p, group in groups.items() if p in self._names}
        named = {self._names[p]: lr for p, lr in rates.items()}
        self._steps.append(_Step(self._moment, by_name, named))

    def pairs(
        self, v: Mapping[Tensor, Tensor], values: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs for ``v``, the gradient of the validation loss."""
        now = {name: p.clone().requires_grad_() for name, p in self._start.items()}
        smooth = {name: SmoothStep(self._optimizer, self._state[name]) for name in now}
        for step in self._steps:
            for name, g in self._gradients(step.moment, values, now).items():
                group, theta = step.groups[name], now[name]
                decay, lr = group["weight_decay"], float(group["lr"])
                if name in step.rates:  # then the optimizer has no decay of its own
                    decay, lr = values[self._decayed[name]], step.rates[name]
                if self._decouples:
                    theta = theta - lr * decay * theta
                else:
                    g = g + decay * theta
                now[name] = smooth[name](group, theta, g)
        self.forget()
        return [(now[self._names[p]], v_p) for p, v_p in v.items()]

    def forget(self) -> None:
        """Begin anew with the next step."""
        self._start, self._state, self._steps = {}, {}, []

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to go on."""
        steps = [asdict(step) for step in self._steps]
        return {"start": self._start, "state": self._state, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one was."""
        device = next(iter(self._params.values())).device
        self._start = copied(state["start"], device=device)
        self._state = copied(state["state"], device=device)
        self._steps = [
            _Step(
                Moment(copied(s["moment"]["batch"], device=device), s["moment"]["randomness"]),
                s["groups"],
                s["rates"],
            )
            for s in state["steps"]
        ]
