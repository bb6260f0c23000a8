"""What a step of torch's optimizers does, and how it depends on the gradient.

With ``theta' = theta + U(g)``, the products ``(dU/dg) v`` follow from what an optimizer has stored
after the step; its derivative is diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.hypergradient import HypergradientAdam
from optuna_ext.online.hypergradient import HypergradientAdamW
from optuna_ext.online.hypergradient import HypergradientSGD


_SGD = (torch.optim.SGD, HypergradientSGD)
_ADAM = (torch.optim.Adam, HypergradientAdam)
_ADAMW = (torch.optim.AdamW, HypergradientAdamW)
_REFUSED = ("amsgrad", "maximize", "dampening")

State = dict[str, Tensor]


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


def groups_of(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return the group of each parameter."""
    return {p: group for group in optimizer.param_groups for p in group["params"]}


def pull_back(
    optimizer: Optimizer, group: dict[str, Any], p: Tensor, g: Tensor, v: Tensor
) -> Tensor:
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
    (beta1, beta2), t = group["betas"], float(state["step"])
    # U = -lr m / (1 - beta1^t) / (r + eps) with r = sqrt(s / (1 - beta2^t)), and m and s are
    # (1 - beta1) g and (1 - beta2) g^2 plus what does not depend on g. Therefore
    # dU/dg = -lr / (1 - beta1^t) / (r + eps) * (1 - beta1 - (1 - beta2) / (1 - beta2^t) m g / (r (r + eps)))
    r = state["exp_avg_sq"].sqrt().div_((1 - beta2**t) ** 0.5)
    below = r + group["eps"]
    bend = state["exp_avg"] * g
    bend.div_(r.mul_(below).clamp_(min=torch.finfo(r.dtype).tiny))
    bend.mul_(-(1 - beta2) / (1 - beta2**t)).add_(1 - beta1)
    return bend.div_(below).mul_(v).mul_(-lr / (1 - beta1**t))


@dataclass
class SmoothStep:
    """An optimizer's step that autograd can follow through parameters, gradient and state.

    Args:
        optimizer: Whose step it is.
        p: The parameter of the optimizer; its state is copied.
    """

    optimizer: Optimizer
    p: Tensor

    def __post_init__(self) -> None:
        state = self.optimizer.state.get(self.p, {})
        names = ("momentum_buffer", "exp_avg", "exp_avg_sq")
        self.state = {n: state[n].detach().clone() for n in names if n in state}
        self.t = float(state["step"]) if "step" in state else 0.0

    def __call__(self, group: dict[str, Any], theta: Tensor, g: Tensor) -> Tensor:
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
        return theta - lr / (1 - beta1**self.t) * m / (r + group["eps"])

    def _sgd(self, group: dict[str, Any], g: Tensor) -> Tensor:
        momentum = group["momentum"]
        if momentum == 0:
            return g
        buffer = self.state.get("momentum_buffer")
        buffer = g if buffer is None else momentum * buffer + g
        self.state["momentum_buffer"] = buffer
        return g + momentum * buffer if group["nesterov"] else buffer
