from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optuna_ext.online.hypergradient._optimizer import HypergradientOptimizer
from optuna_ext.online.hypergradient._optimizer import memory_for
from optuna_ext.online.hypergradient._optimizer import Moving
from optuna_ext.online.hypergradient._optimizer import Rule


class HypergradientSGD(HypergradientOptimizer):
    """SGD that tunes its own learning rate while it trains, by hypergradient descent.

    Before each step the learning rate moves along its own gradient, the product of this batch's
    gradient and the last step's direction: where they agree the last step was too short. It takes
    the place of ``torch.optim.SGD`` together with its scheduler; with ``hyper_lr=0`` it is
    ``torch.optim.SGD(foreach=True)`` bit for bit.

    The rate follows the *training* loss one step ahead. It recovers from a start that is wrong by
    orders of magnitude, but it is greedy: it decays sooner than the best hand-made schedule.

    Example:

        .. testcode::

            import torch
            from torch.nn.functional import mse_loss
            from optuna_ext import HypergradientSGD

            model = torch.nn.Linear(3, 1)
            optimizer = HypergradientSGD(model.parameters(), lr=1e-4, momentum=0.9)
            x = torch.randn(64, 3)
            for _ in range(20):
                optimizer.zero_grad()
                mse_loss(model(x), x.sum(1, keepdim=True)).backward()
                optimizer.step()
            print(optimizer.param_groups[0]["lr"])

    Args:
        params:
            Parameters, or groups of them with options of their own, as for every torch optimizer.
        lr:
            The learning rate of the first step, positive; 0 is possible with
            ``rule="additive"``. The current one is in ``param_groups[i]["lr"]``.
        momentum:
            Share of the last update that goes into the next one, in ``[0, 1)``.
        dampening:
            Share of the gradient that is left out of the momentum, in ``[0, 1]``.
        weight_decay:
            Weight of the L2 penalty, at least 0.
        nesterov:
            Whether the gradient is taken where the momentum leads to.
        maximize:
            Whether to go up instead of down.
        hyper_lr:
            The step size of the learning rate, at least 0; 0 keeps it as it is. The default,
            :obj:`None`, is 1.4 (exponential), 0.02 (multiplicative) or Baydin's 1e-3 (additive).
        rule:
            What the slope ``h_t``, the product of gradient and direction, does to the rate.
            ``"exponential"`` adds ``hyper_lr * t**-0.75 * h_t / rms(h)`` to its logarithm, at
            most 0.05: it brakes hard at first and settles later, at any scale of the loss.
            ``"multiplicative"`` multiplies the rate by ``1 + hyper_lr * c_t`` with their cosine
            ``c_t``, as published. ``"additive"`` adds ``hyper_lr * h_t``, as published:
            ``hyper_lr`` then has units and must be tuned, and a rate that would become negative
            is held at 0.
        per_group:
            Whether each group of parameters has a rate of its own. Otherwise all of them move by
            the same factor (or summand).

    Raises:
        TypeError: If ``lr`` is not a number.
        ValueError: If an argument is out of its range or not one of its choices.
        RuntimeError: If a learning rate scheduler is put on it (``ReduceLROnPlateau``: when it
            first moves the rate), or a gradient is sparse.

    .. seealso::
        A. G. Baydin, R. Cornish, D. Martinez Rubio, M. Schmidt, F. Wood (2018), *Online learning
        rate adaptation with hypergradient descent*, ICLR, https://arxiv.org/abs/1703.04782.
    """

    _additive_hyper_lr = 1e-3

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        hyper_lr: float | None = None,
        rule: Rule = "exponential",
        per_group: bool = True,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), but got {momentum}.")
        if not 0 <= dampening <= 1:
            raise ValueError(f"`dampening` must be in [0, 1], but got {dampening}.")
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                "`nesterov` needs a positive `momentum` and no `dampening`, but got "
                f"momentum={momentum} and dampening={dampening}."
            )
        super().__init__(
            params,
            hyper_lr=hyper_lr,
            rule=rule,
            per_group=per_group,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def _descend(self, group: dict[str, Any], moving: Moving) -> None:
        """Do what torch's foreach implementation does, in its order."""
        us = moving.grads
        if group["momentum"] != 0:
            buffers = _buffers(group, moving)
            us = _nesterov(group, moving, buffers) if group["nesterov"] else buffers
            if group["hyper_lr"] != 0:
                for state, u in zip(moving.states, us, strict=True):
                    state["direction"] = u
        elif group["hyper_lr"] != 0:
            us = memory_for(moving)
            torch._foreach_copy_(us, moving.grads)
        torch._foreach_add_(moving.params, us, alpha=-group["lr"])


def _buffers(group: dict[str, Any], moving: Moving) -> list[Tensor]:
    """Return the momentum, with this step's gradients in it."""
    old, grads = [], []
    for grad, state in zip(moving.grads, moving.states, strict=True):
        if "momentum_buffer" in state:
            old.append(state["momentum_buffer"])
            grads.append(grad)
        else:
            state["momentum_buffer"] = grad.clone()
    if old:
        torch._foreach_mul_(old, group["momentum"])
        torch._foreach_add_(old, grads, alpha=1 - group["dampening"])
    return [state["momentum_buffer"] for state in moving.states]


def _nesterov(group: dict[str, Any], moving: Moving, buffers: list[Tensor]) -> list[Tensor]:
    momentum = group["momentum"]
    if group["hyper_lr"] == 0:  # as torch does: into the gradients
        torch._foreach_add_(moving.grads, buffers, alpha=momentum)
        return moving.grads
    if all(grad.is_cpu for grad in moving.grads):
        us = memory_for(moving)
        for u, grad, buffer in zip(us, moving.grads, buffers, strict=True):
            torch.add(grad, buffer, alpha=momentum, out=u)
        return us
    return list(torch._foreach_add(moving.grads, buffers, alpha=momentum))
