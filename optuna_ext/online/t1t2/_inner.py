"""What a step of torch's optimizers does, and how it depends on the gradient.

With ``theta' = theta + U(g)``, the products ``(dU/dg) v`` follow from what an optimizer has stored
after the step; its derivative is diagonal.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.hypergradient import HypergradientAdam
from optuna_ext.online.hypergradient import HypergradientAdamW
from optuna_ext.online.hypergradient import HypergradientSGD
from optuna_ext.online.t1t2._step import Group


_SGD = (torch.optim.SGD, HypergradientSGD)
_ADAM = (torch.optim.Adam, HypergradientAdam)
_ADAMW = (torch.optim.AdamW, HypergradientAdamW)
_REFUSED = ("amsgrad", "maximize", "dampening")

_PART = 2**16  # elements


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose derivative is not known here.

    Raises:
        TypeError: If it is of another class.
        ValueError: If it uses an option that is not supported.
    """
    if type(optimizer) not in (*_SGD, *_ADAM, *_ADAMW):
        raise TypeError(
            "`optimizer` must be a torch.optim.SGD, Adam or AdamW, or one of ours by these names, "
            f"but got {type(optimizer).__name__}."
        )
    for group in optimizer.param_groups:
        for option in _REFUSED:
            if group.get(option):
                raise ValueError(f"`optimizer` must not use {option}, but got {group[option]!r}.")


def is_decoupled(optimizer: Optimizer) -> bool:
    """Return whether weight decay acts beside the gradient."""
    return isinstance(optimizer, _ADAMW)


def groups_of(optimizer: Optimizer) -> dict[Tensor, Group]:
    """Return the present group of each parameter."""
    return {p: group for group in optimizer.param_groups for p in group["params"]}


def stored(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """Return a copy of what an optimizer knows of a parameter from the steps before."""
    state = optimizer.state.get(p, {})
    names = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")
    return {n: torch.as_tensor(state[n]).detach().clone() for n in names if n in state}


def pull_back(optimizer: Optimizer, group: Group, p: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Return ``(dU/dg) v`` of the step just made.

    Args:
        optimizer: After its step.
        group: The parameter's group.
        p: The parameter.
        g: Its gradient in that step, with what weight decay has added.
        v: What is multiplied.
    """
    lr = float(group["lr"])
    if isinstance(optimizer, _SGD):
        return v * (-lr * (1 + group["momentum"] if group["nesterov"] else 1))
    state = optimizer.state[p]
    w = torch.empty_like(v)
    tensors = (w, v, g, state["exp_avg"], state["exp_avg_sq"])
    parts: Iterable[tuple[Tensor, ...]] = [tensors]
    if v.device.type == "cpu" and all(x.is_contiguous() for x in tensors):  # stay in the cache
        parts = zip(*(x.view(-1).split(_PART) for x in tensors), strict=True)
    for part in parts:
        _pull_back_adam(*part, group=group, t=float(state["step"]))
    return w


def _pull_back_adam(
    w: Tensor, v: Tensor, g: Tensor, m: Tensor, s: Tensor, *, group: Group, t: float
) -> None:
    """Write into ``w``.

    U = -lr m / (1 - beta1^t) / (r + eps) with r = sqrt(s / (1 - beta2^t)), where m and s are
    (1 - beta1) g and (1 - beta2) g^2 plus what does not depend on g. Therefore
    dU/dg = -lr / (1 - beta1^t) / (r + eps)
            * (1 - beta1 - (1 - beta2) / (1 - beta2^t) m g / (r (r + eps))),
    and the corrections of m and s are taken out of the elementwise operations.
    """
    beta1, beta2 = group["betas"]
    correction = (1 - beta2**t) ** 0.5
    scale = -float(group["lr"]) / (1 - beta1**t) * correction
    r = s.sqrt().clamp_(min=torch.finfo(s.dtype).tiny)  # where s is 0, so are m and g
    below = r + group["eps"] * correction
    torch.mul(m, g, out=w).div_(r)
    straight = torch.full((), scale * (1 - beta1), dtype=w.dtype, device=w.device)
    torch.addcdiv(straight, w, below, value=-scale * (1 - beta2), out=w)
    w.mul_(v).div_(below)


@dataclass
class SmoothStep:
    """An optimizer's step that autograd can follow through parameters, gradient and state.

    Args:
        optimizer: Whose step it is.
        before: What :func:`stored` returned before.
    """

    optimizer: Optimizer
    before: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.state = dict(self.before)
        self.t = float(self.state.pop("step", 0.0))

    def __call__(self, group: Group, theta: Tensor, g: Tensor) -> Tensor:
        """Return the parameter after one more step, without weight decay."""
        self.t += 1
        lr = float(group["lr"])
        if isinstance(self.optimizer, _SGD):
            return theta - lr * self._sgd(group, g)
        beta1, beta2 = group["betas"]
        zero = torch.zeros_like(g)
        m = self.state["exp_avg"] = torch.lerp(self.state.get("exp_avg", zero), g, 1 - beta1)
        s = beta2 * self.state.get("exp_avg_sq", zero) + (1 - beta2) * g * g
        self.state["exp_avg_sq"] = s
        # The derivative of the root at 0 is infinite; where s is 0, so is m.
        r = torch.where(s > 0, s, torch.ones_like(s)).sqrt() * (s > 0) / (1 - beta2**self.t) ** 0.5
        after: Tensor = theta - lr / (1 - beta1**self.t) * m / (r + group["eps"])
        return after

    def _sgd(self, group: Group, g: Tensor) -> Tensor:
        momentum: float = group["momentum"]
        if momentum == 0:
            return g
        buffer: Tensor = g
        if "momentum_buffer" in self.state:
            buffer = g + self.state["momentum_buffer"] * momentum
        self.state["momentum_buffer"] = buffer
        return g.add(buffer, alpha=momentum) if group["nesterov"] else buffer
