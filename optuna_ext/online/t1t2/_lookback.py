"""How the parameters depend on the hyperparameters of the steps that led to them.

This class and :class:`LastSteps` return pairs of tensors: if each first one is multiplied by its
second one and all are summed up, the derivatives by the hyperparameters are those of the
validation loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.t1t2._inner import is_decoupled
from optuna_ext.online.t1t2._inner import pull_back
from optuna_ext.online.t1t2._step import Group
from optuna_ext.online.t1t2._step import Moment


class LastStep:
    """The step just made, and of L2 a discounted memory of the steps before it.

    Args:
        optimizer:
            Whose step it is.
        params:
            The trainable parameters by name.
        decayed:
            The name of the L2 weight of the parameters that have one.
        trace:
            The discount.
        hold_length:
            Whether a change of the gradient along itself does not count.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Mapping[str, Tensor],
        decayed: Mapping[Tensor, str],
        *,
        trace: float,
        hold_length: bool,
    ) -> None:
        self._optimizer = optimizer
        self._params = params
        self._decayed = decayed
        self._decouples = is_decoupled(optimizer)
        self._trace = trace
        self._hold_length = hold_length
        self._effects: dict[Tensor, Tensor] = {}
        self._before: dict[Tensor, Tensor] = {}
        self._gradients: Mapping[Tensor, Tensor] = {}
        self._rates: Mapping[Tensor, float] = {}
        self._groups: Mapping[Tensor, Group] = {}

    def watches(self, steps_to_go: int) -> bool:
        """Return whether a step so far from the next update must be watched."""
        return steps_to_go == 0 or self._trace > 0

    def begin(self, moment: Moment) -> None:
        """Copy the parameters, so that a graph on the copies outlives the optimizer's step."""
        del moment
        with torch.no_grad():
            for p in self._params.values():
                if p not in self._before:
                    self._before[p] = torch.empty_like(p).requires_grad_()
                self._before[p].copy_(p)

    @property
    def stand_ins(self) -> dict[str, Tensor]:
        """The copies by name."""
        return {name: self._before[p] for name, p in self._params.items()}

    def keep(self, gradients: Mapping[str, Tensor]) -> None:
        """Take the gradients of the copies, whose graph leads to the hyperparameters."""
        self._gradients = {self._params[name]: g for name, g in gradients.items()}

    @torch.no_grad()
    def advance(self, groups: Mapping[Tensor, Group], rates: Mapping[Tensor, float]) -> None:
        """Note that the optimizer has made its step, as :class:`LastSteps` does."""
        self._groups, self._rates = groups, rates
        if self._trace > 0:
            for p, lr in rates.items():
                before = self._before[p]
                effect = before * -lr if self._decouples else self._pull_back(p, before)
                if p in self._effects:
                    effect += self._trace * self._effects[p]
                self._effects[p] = effect

    @torch.no_grad()
    def pairs(
        self, v: Mapping[Tensor, Tensor], values: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs for ``v``, the gradient of the validation loss."""
        found: list[tuple[Tensor, Tensor]] = []
        along: list[tuple[Tensor, Tensor]] = []
        for p, v_p in v.items():
            if p in self._gradients:
                w = self._pull_back(p, v_p)
                along.append((self._gradients[p], w))
            if p in self._rates:
                if self._trace > 0:
                    slope = _dot(v_p, self._effects[p])
                elif self._decouples:
                    slope = _dot(v_p, self._before[p]) * -self._rates[p]
                else:
                    w = w if p in self._gradients else self._pull_back(p, v_p)
                    slope = _dot(w, self._before[p])
                found.append((values[self._decayed[p]], slope))
        self.forget()
        return found + (_across(along) if self._hold_length else along)

    def forget(self) -> None:
        """Let go of the graph, and of the memory that it holds."""
        self._gradients = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to go on."""
        names = {p: name for name, p in self._params.items()}
        return {"effects": {names[p]: effect.clone() for p, effect in self._effects.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one was."""
        params, effects = self._params, state["effects"]
        self._effects = {
            params[name]: effects[name].to(params[name], copy=True) for name in effects
        }

    def _pull_back(self, p: Tensor, x: Tensor) -> Tensor:
        group, g = self._groups[p], p.grad
        if g is None:
            raise RuntimeError("The gradients are gone: keep them until `update` is done.")
        if not self._decouples and group["weight_decay"] != 0:
            g = g + group["weight_decay"] * self._before[p]  # as the optimizer does by itself
        return pull_back(self._optimizer, group, p, g, x)


def _across(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Take from the second tensors what is parallel to the first, all of them as one vector."""
    if not pairs:
        return []
    square = torch.stack([_dot(g, g) for g, _ in pairs]).sum()
    share = torch.stack([_dot(g, w.to(g.dtype)) for g, w in pairs]).sum() / square
    return [(g, torch.addcmul(w, g, share, value=-1)) for g, w in pairs]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.dot(x.reshape(-1), y.reshape(-1))
