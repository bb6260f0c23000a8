from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import math
import sys
from typing import Any
from typing import Literal
from typing import overload
import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


Rule = Literal["exponential", "multiplicative", "additive"]
_HALF = (torch.float16, torch.bfloat16)
_RULES = ("exponential", "multiplicative", "additive")
_HYPER_LR = {"exponential": 0.7, "multiplicative": 0.02}  # which know no units
# Of the exponential rule. Exponents in (1/2, 1] let steps reach everything and noise average out
# (Robbins & Monro 1951).
_ANNEALING = 0.75
_MEMORY = 0.99  # of the mean square of the cosines
_LARGEST_RISE = 0.05  # of log lr in one step: too low a rate costs time, too high a one weights


class HypergradientOptimizer(Optimizer):
    """Optimizer that moves its learning rate down the loss before each step.

    A step is ``theta_t = theta_{t-1} - lr_t * u_t``. The next batch's gradient ``g_{t+1}`` tells
    how the loss changes with the rate that was used: ``d loss / d lr_t = -<g_{t+1}, u_t>`` (Baydin
    et al. 2018, eq. 5). A subclass says what ``u`` is.
    """

    _decays_coupled = True  # weight decay is part of the gradient
    _has_warned = False

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        hyper_lr: float | None,
        rule: Rule,
        per_group: bool,
        additive_hyper_lr: float,
    ) -> None:
        if rule not in _RULES:
            raise ValueError(f"`rule` must be one of {list(_RULES)}, but got {rule!r}.")
        if hyper_lr is None:
            hyper_lr = _HYPER_LR.get(rule, additive_hyper_lr)
        shared = {"hyper_lr": hyper_lr, "rule": rule, "per_group": bool(per_group)}
        super().__init__(params, defaults | shared)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the optimizer's options or its own."""
        _check_group(self.defaults | param_group)
        super().add_param_group(param_group)

    def __setattr__(self, name: str, value: object) -> None:
        # It is how a learning rate scheduler begins.
        if name == "step":
            raise RuntimeError(
                f"{type(self).__name__} sets its own learning rate: use no scheduler with it, or "
                "a scheduler with torch.optim's optimizer of that name."
            )
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # the state may be that of torch's own optimizer
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
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
        moving = [self._with_gradient(group) for group in self.param_groups]
        self._update_rates(moving)
        for group, params in zip(self.param_groups, moving, strict=True):
            if params:
                self._descend(group, params)
        return loss

    def _with_gradient(self, group: dict[str, Any]) -> list[Tensor]:
        params: list[Tensor] = []
        for p in group["params"]:
            if p.grad is None:  # it will not have moved when the next gradients come
                self.state.get(p, {}).pop("direction", None)
            elif p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} needs dense gradients, but one is sparse: build the "
                    "embedding with sparse=False."
                )
            else:
                params.append(p)
        return params

    def _descend(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Move parameters by ``-lr * u`` and keep ``u`` in their states as ``direction``."""
        raise NotImplementedError

    def _gradients(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> list[Tensor]:
        """Return what the optimizer takes for gradients; they may be ``grads`` themselves."""
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if self._decays_coupled and group["weight_decay"] != 0:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        return grads

    def _update_rates(self, moving: Sequence[list[Tensor]]) -> None:
        groups = self.param_groups
        if all(group["hyper_lr"] == 0 for group in groups):
            return
        products = [self._products(*pair) for pair in zip(groups, moving, strict=True)]
        if not self.defaults["per_group"]:
            products = [_over_all_groups(products, groups)] * len(groups)
        for group, (gu, gg, uu) in zip(groups, products, strict=True):
            if group["rule"] == "additive":
                group["lr"] = self._added(group["lr"], group["hyper_lr"] * gu)
            elif gg > 0 and uu > 0:
                factor = _factor(group, gu / (math.sqrt(gg) * math.sqrt(uu)))
                group["lr"] = max(group["lr"] * factor, sys.float_info.min)

    def _added(self, lr: float, change: float) -> float:
        if lr + change < 0 and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"The learning rate of {type(self).__name__} would become negative and is held "
                "at 0; a smaller `hyper_lr` or rule='exponential' avoids that.",
                stacklevel=6,
            )
        # The weights may be lost to a NaN, the rate need not be.
        return max(lr + change, 0.0) if math.isfinite(change) else lr

    def _products(self, group: dict[str, Any], params: list[Tensor]) -> tuple[float, float, float]:
        """Return ``<g, u>``, ``<g, g>`` and ``<u, u>`` over the parameters moved last time.

        The squares are left out where the rule does not ask for them.
        """
        moved = [p for p in params if "direction" in self.state[p]]
        if not moved or group["hyper_lr"] == 0:
            return 0.0, 0.0, 0.0
        gs = _flat(self._gradients(group, moved, gradients_of(moved)))
        us = _flat([self.state[p]["direction"] for p in moved])
        with_squares = group["rule"] != "additive"
        gu, gg, uu = 0.0, 0.0, 0.0
        for g, u in _pairs(gs, us):
            if not with_squares:
                gu += g.dot(u).item()
            elif g.is_cpu:
                gu += g.dot(u).item()
                gg += g.dot(g).item()
                uu += u.dot(u).item()
            else:  # wait for the device once
                three = torch.stack([g.dot(u), g.dot(g), u.dot(u)]).tolist()
                gu, gg, uu = gu + three[0], gg + three[1], uu + three[2]
        return gu, gg, uu


def _factor(group: dict[str, Any], cosine: float) -> float:
    if group["hyper_lr"] == 0 or not math.isfinite(cosine):
        return 1.0
    if group["rule"] == "multiplicative":
        return 1 + float(group["hyper_lr"]) * cosine
    count = group["hyper_steps"] = group.get("hyper_steps", 0) + 1
    square = _MEMORY * group.get("hyper_square", 0.0) + (1 - _MEMORY) * cosine**2
    group["hyper_square"] = square
    if cosine == 0:
        return 1.0
    sign = cosine / math.sqrt(square / (1 - _MEMORY**count))
    return math.exp(min(group["hyper_lr"] * count**-_ANNEALING * sign, _LARGEST_RISE))


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of parameters that have one."""
    return [p.grad for p in params if p.grad is not None]


def real(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return complex tensors as real ones with a dimension more, others as they are."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]


def _pairs(gs: list[Tensor], us: list[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    """Return the vectors, those of a device other than the CPU as one: it is slow to be asked."""
    if all(g.is_cpu for g in gs):
        return zip(gs, us, strict=True)
    there: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
    for g, u in zip(gs, us, strict=True):
        some = there.setdefault(g.device, ([], []))
        some[0].append(g)
        some[1].append(u)
    return [(torch.cat(some), torch.cat(others)) for some, others in there.values()]


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [(x.float() if x.dtype in _HALF else x).reshape(-1) for x in real(tensors)]


def _over_all_groups(
    products: Sequence[tuple[float, float, float]], groups: Sequence[dict[str, Any]]
) -> tuple[float, float, float]:
    """Sum up, with directions as long as the groups' steps where only their ratio matters."""
    largest = max(group["lr"] for group in groups)
    gu, gg, uu = 0.0, 0.0, 0.0
    for group, product in zip(groups, products, strict=True):
        share = 1.0 if group["rule"] == "additive" else group["lr"] / largest
        gu += share * product[0]
        gg += product[1]
        uu += share**2 * product[2]
    return gu, gg, uu


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
