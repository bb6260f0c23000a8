from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import gc
import math
import sys
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import overload
import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import ParamsT


Rule = Literal["exponential", "multiplicative", "additive"]
_SUMMED = (torch.float32, torch.float64)  # types whose products are summed up as they are
_RULES = ("exponential", "multiplicative", "additive")
_HYPER_LR = {"exponential": 1.4, "multiplicative": 0.02}  # which know no units
# Of the exponential rule. Exponents in (1/2, 1] let steps reach everything and noise average out
# (Robbins & Monro 1951).
_ANNEALING = 0.75
_MEMORY = 0.9  # of the mean square of the slopes, short: they shrink by orders of magnitude
_LARGEST_RISE = 0.05  # of log lr in one step: too low a rate costs time, too high a one weights


# <g, u>, <g, g> and <u, u>; only the multiplicative rule asks for the squares.
_Products = tuple[float, float, float]


class Moving(NamedTuple):
    """Those parameters of a group that have a gradient, and what belongs to each of them."""

    params: list[Tensor]
    grads: list[Tensor]  # what the optimizer takes for gradients: with penalty, say
    states: list[dict[str, Any]]


class HypergradientOptimizer(Optimizer):
    """Optimizer that moves its learning rate down the loss before each step.

    A step is ``theta_t = theta_{t-1} - lr_t * u_t``. The next batch's gradient ``g_{t+1}`` tells
    how the loss changes with the rate that was used: ``d loss / d lr_t = -<g_{t+1}, u_t>`` (Baydin
    et al. 2018, eq. 5). A subclass says what ``u`` is.
    """

    _additive_hyper_lr: float  # by default
    _decays_coupled = True  # weight decay is part of the gradient
    _has_warned = False
    _rates: list[float] | None = None  # as the last step left them

    def __init__(
        self,
        params: ParamsT,
        *,
        hyper_lr: float | None,
        rule: Rule,
        per_group: bool,
        **defaults: Any,
    ) -> None:
        if rule not in _RULES:
            raise ValueError(f"`rule` must be one of {list(_RULES)}, but got {rule!r}.")
        if hyper_lr is None:
            hyper_lr = _HYPER_LR.get(rule, self._additive_hyper_lr)
        shared = {"hyper_lr": hyper_lr, "rule": rule, "per_group": bool(per_group)}
        super().__init__(params, defaults | shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the optimizer's options or its own."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    def __setattr__(self, name: str, value: object) -> None:
        # It is how a learning rate scheduler begins.
        if name == "step":
            raise self._refusal()
        super().__setattr__(name, value)

    def _refusal(self) -> RuntimeError:
        return RuntimeError(
            f"{type(self).__name__} sets its own learning rate: use no scheduler with it, or "
            "a scheduler with torch.optim's optimizer of that name."
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # the state may be that of torch's own optimizer
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the learning rate, then the parameters.

        Args:
            closure:
                Evaluates the model again, calls ``backward`` and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            moving = [self._moving(group) for group in self.param_groups]
            self._update_rates(moving)
            for group, each in zip(self.param_groups, moving, strict=True):
                if each.params:
                    self._descend(group, each)
        return loss

    def _moving(self, group: dict[str, Any]) -> Moving:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        states: list[dict[str, Any]] = []
        for p in group["params"]:
            grad = p.grad
            if grad is None:  # it will not have moved when the next gradients come
                self.state.get(p, {}).pop("direction", None)
            elif grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} needs dense gradients, but one is sparse: build the "
                    "embedding with sparse=False."
                )
            else:
                params.append(p)
                grads.append(grad)
                states.append(self.state[p])
        if params and group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if params and self._decays_coupled and group["weight_decay"] != 0:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        return Moving(params, grads, states)

    def _descend(self, group: dict[str, Any], moving: Moving) -> None:
        """Move parameters by ``-lr * u``; keep ``u`` in their states.

        It is ``state["direction"]``, times ``state["factor"]`` where there is one.
        """
        raise NotImplementedError

    def _update_rates(self, moving: Sequence[Moving]) -> None:
        groups = self.param_groups
        rates = [group["lr"] for group in groups]
        if rates != self._rates and self._rates is not None and _reduced_on_plateau(self):
            raise self._refusal()
        products = [_products(*pair) for pair in zip(groups, moving, strict=True)]
        if not self.defaults["per_group"]:
            products = [_over_all_groups(products, groups)] * len(groups)
        for i, group in enumerate(groups):
            group["lr"] = rates[i] = self._moved(group, products[i])
        self._rates = rates

    def _moved(self, group: dict[str, Any], products: _Products) -> float:
        """Return the next learning rate."""
        lr: float = group["lr"]
        if group["hyper_lr"] == 0 or not math.isfinite(sum(products)):
            return lr  # the weights may be lost to a NaN, the rate need not be
        if group["rule"] == "additive":
            return self._held(lr + group["hyper_lr"] * products[0])
        return max(lr * _factor(group, products), sys.float_info.min)

    def _held(self, lr: float) -> float:
        if lr < 0 and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The learning rate of {type(self).__name__} would become negative and is held "
                "at 0; a smaller `hyper_lr` or rule='exponential' avoids that.",
                stacklevel=6,
            )
        return max(lr, 0.0)


def memory_for(moving: Moving) -> list[Tensor]:
    """Return tensors to write directions into: the last ones, which are no longer needed.

    Fresh memory takes a CPU longer than the arithmetic.
    """
    for p, state in zip(moving.params, moving.states, strict=True):
        direction = state.get("direction")
        # With plain momentum, which may be switched off, the direction is the momentum itself.
        if direction is None or direction is state.get("momentum_buffer"):
            state["direction"] = torch.empty_like(p)
    return [state["direction"] for state in moving.states]


def _products(group: dict[str, Any], moving: Moving) -> _Products:
    """Multiply gradients with the directions that their parameters moved in last time."""
    gu, gg, uu = 0.0, 0.0, 0.0
    if group["hyper_lr"] == 0:
        return gu, gg, uu
    for g, u, factor in _vectors(moving):
        gu += factor * g.dot(u).item()
        if group["rule"] == "multiplicative":
            gg += g.dot(g).item()
            uu += factor**2 * u.dot(u).item()
    return gu, gg, uu


def _vectors(moving: Moving) -> Iterable[tuple[Tensor, Tensor, float]]:
    """Give gradients, directions and their factors.

    Those of a device other than the CPU come as one, because it is slow to be asked.
    """
    there: dict[tuple[torch.device, float], tuple[list[Tensor], list[Tensor]]] = {}
    for g, state in zip(moving.grads, moving.states, strict=True):
        u = state.get("direction")
        if u is None:
            continue
        if g.dtype not in _SUMMED:
            g, u = _summable(g), _summable(u)
        factor = state.get("factor", 1.0)
        if g.is_cpu:
            yield g.ravel(), u.ravel(), factor
        else:
            gs, us = there.setdefault((g.device, factor), ([], []))
            gs.append(g.ravel())
            us.append(u.ravel())
    for (_, factor), (gs, us) in there.items():
        yield torch.cat(gs), torch.cat(us), factor


def _summable(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x.float()


def _factor(group: dict[str, Any], products: _Products) -> float:
    """Return what a rate is multiplied by."""
    slope, gg, uu = products
    if group["rule"] == "multiplicative":
        lengths = math.sqrt(gg) * math.sqrt(uu)
        return 1 + float(group["hyper_lr"]) * slope / lengths if lengths > 0 else 1.0
    square = _MEMORY * group.get("hyper_square", 0.0) + (1 - _MEMORY) * slope * slope
    if slope == 0 or square == 0 or square == math.inf:
        return 1.0
    count = group["hyper_steps"] = group.get("hyper_steps", 0) + 1
    group["hyper_square"] = square
    sign = slope / math.sqrt(square / (1 - _MEMORY**count))
    return math.exp(min(group["hyper_lr"] * count**-_ANNEALING * sign, _LARGEST_RISE))


def _over_all_groups(products: Sequence[_Products], groups: Sequence[dict[str, Any]]) -> _Products:
    """Sum up, with directions as long as the groups' steps where only their ratio matters."""
    largest = max(group["lr"] for group in groups)
    total = 0.0, 0.0, 0.0
    for group, (gu, gg, uu) in zip(groups, products, strict=True):
        share = 1.0 if group["rule"] == "additive" else group["lr"] / largest
        total = total[0] + share * gu, total[1] + gg, total[2] + share**2 * uu
    return total


def _reduced_on_plateau(optimizer: Optimizer) -> bool:
    """Whether there is a ReduceLROnPlateau for it, which leaves no trace on the optimizer."""
    return any(
        issubclass(type(x), ReduceLROnPlateau) and vars(x).get("optimizer") is optimizer
        for x in gc.get_objects()
    )


def _check_group(group: dict[str, Any]) -> None:
    lr, hyper_lr, rule = group["lr"], group["hyper_lr"], group["rule"]
    if not isinstance(lr, int | float):
        raise TypeError(f"`lr` must be a float, but got {lr!r}.")
    if not 0 <= lr < math.inf:
        raise ValueError(f"`lr` must be at least 0 and finite, but got {lr}.")
    if rule != "additive" and lr == 0:
        raise ValueError(f"`lr` must be positive with rule={rule!r}, which scales it, but got 0.")
    if not 0 <= hyper_lr < math.inf:
        raise ValueError(f"`hyper_lr` must be at least 0 and finite, but got {hyper_lr}.")
    if rule == "multiplicative" and hyper_lr >= 1:
        raise ValueError(
            f"`hyper_lr` must be below 1 with rule='multiplicative', but got {hyper_lr}."
        )
    if group["weight_decay"] < 0:
        raise ValueError(f"`weight_decay` must be at least 0, but got {group['weight_decay']}.")
