"""How the parameters depend on the hyperparameters of the steps that led to them.

Both classes return pairs of tensors: if each first one is multiplied by its second one and all are
summed up, the derivatives by the hyperparameters are those of the validation loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.t1t2._inner import groups_of
from optuna_ext.online.t1t2._inner import is_decoupled
from optuna_ext.online.t1t2._inner import pull_back
from optuna_ext.online.t1t2._inner import SmoothStep


class LastStep:
    """The step just made, and of L2 a discounted memory of the steps before it.

    Args:
        optimizer:
            Whose step it is.
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
        decayed: Mapping[Tensor, str],
        *,
        trace: float,
        hold_length: bool,
    ) -> None:
        self._optimizer = optimizer
        self._groups = groups_of(optimizer)
        self._decayed = decayed
        self._decouples = is_decoupled(optimizer)
        self._trace = trace
        self._hold_length = hold_length
        self._effects: dict[Tensor, Tensor] = {}
        self._before: dict[Tensor, Tensor] = {}
        self._gradients: Mapping[Tensor, Tensor] = {}
        self._rates: Mapping[Tensor, float] = {}

    def watches(self, steps_to_go: int) -> bool:
        """Return whether a step so far from the next update must be watched."""
        return steps_to_go == 0 or self._trace > 0

    def begin(self, params: Sequence[Tensor]) -> Mapping[Tensor, Tensor]:
        """Copy the parameters, so that a graph on the copies outlives the optimizer's step."""
        self._gradients = {}
        with torch.no_grad():
            for p in params:
                if p not in self._before:
                    self._before[p] = torch.empty_like(p).requires_grad_()
                self._before[p].copy_(p)
        return self._before

    def keep(self, gradients: Mapping[Tensor, Tensor], rates: Mapping[Tensor, float]) -> None:
        """Take what the optimizer's step is to be made of.

        Args:
            gradients: Those of the copies whose graph leads to the hyperparameters.
            rates: The learning rate of L2 for what it decays in this step.
        """
        self._gradients = gradients
        self._rates = rates

    @torch.no_grad()
    def advance(self, values: Mapping[str, Tensor]) -> None:
        """Note that the optimizer has made its step."""
        del values
        if self._trace > 0:
            for p, lr in self._rates.items():
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
            if p not in self._before:
                continue
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
        return found + (_across(along) if self._hold_length else along)

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


class LastSteps:
    """The last few steps, in one graph.

    Args:
        optimizer:
            Whose steps they are.
        decayed:
            The name of the L2 weight of the parameters that have one.
        n:
            How many.
    """

    def __init__(self, optimizer: Optimizer, decayed: Mapping[Tensor, str], *, n: int) -> None:
        self._optimizer = optimizer
        self._groups = groups_of(optimizer)
        self._decayed = decayed
        self._decouples = is_decoupled(optimizer)
        self._n = n
        self._now: dict[Tensor, Tensor] = {}
        self._steps: dict[Tensor, SmoothStep] = {}
        self._gradients: Mapping[Tensor, Tensor] = {}
        self._rates: Mapping[Tensor, float] = {}

    def watches(self, steps_to_go: int) -> bool:
        """Return whether a step so far from the next update must be watched."""
        return steps_to_go < self._n

    def begin(self, params: Sequence[Tensor]) -> Mapping[Tensor, Tensor]:
        """Return what stands for the parameters in the graph."""
        if not self._now:
            self._now = {p: p.detach().clone().requires_grad_() for p in params}
            self._steps = {p: SmoothStep(self._optimizer, p) for p in params}
        return self._now

    def keep(self, gradients: Mapping[Tensor, Tensor], rates: Mapping[Tensor, float]) -> None:
        """Take what the optimizer's step is to be made of, as :class:`LastStep` does."""
        self._gradients = gradients
        self._rates = rates

    def advance(self, values: Mapping[str, Tensor]) -> None:
        """Make the optimizer's step in the graph, too."""
        for p, g in self._gradients.items():
            group, theta = self._groups[p], self._now[p]
            decay, lr = group["weight_decay"], float(group["lr"])
            if p in self._rates:  # then the optimizer has no decay of its own
                decay, lr = values[self._decayed[p]], self._rates[p]
            if self._decouples:
                theta = theta - lr * decay * theta
            else:
                g = g + decay * theta
            self._now[p] = self._steps[p](group, theta, g)

    def pairs(
        self, v: Mapping[Tensor, Tensor], values: Mapping[str, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs for ``v``, the gradient of the validation loss."""
        del values
        found = [(self._now[p], v_p) for p, v_p in v.items()]
        self._now = {}
        return found
