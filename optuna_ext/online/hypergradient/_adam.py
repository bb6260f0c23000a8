from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optuna_ext.online.hypergradient._optimizer import HypergradientOptimizer
from optuna_ext.online.hypergradient._optimizer import memory_for
from optuna_ext.online.hypergradient._optimizer import Moving
from optuna_ext.online.hypergradient._optimizer import Rule


_ONE = torch.tensor(1.0)  # made once: a number would become a tensor for every tensor added to


class HypergradientAdam(HypergradientOptimizer):
    """Adam that tunes its own learning rate while it trains, by hypergradient descent.

    See :class:`~optuna_ext.HypergradientSGD` for the method. It takes the place of
    ``torch.optim.Adam`` together with its scheduler and reads its state; with ``hyper_lr=0`` it
    is ``torch.optim.Adam(foreach=True)`` bit for bit.

    Example:

        .. testcode::

            import torch
            from torch.nn.functional import mse_loss
            from optuna_ext import HypergradientAdam

            model = torch.nn.Linear(3, 1)
            optimizer = HypergradientAdam(model.parameters(), lr=1e-6)
            x = torch.randn(64, 3)
            for _ in range(20):
                optimizer.zero_grad()
                mse_loss(model(x), x.sum(1, keepdim=True)).backward()
                optimizer.step()
            print(optimizer.param_groups[0]["lr"])

    Args:
        params:
            As for :class:`~optuna_ext.HypergradientSGD`, and so are ``lr``, ``weight_decay``,
            ``maximize``, ``rule`` and ``per_group``.
        betas:
            Decay of the running means of the gradient and of its square, both in ``[0, 1)``.
        eps:
            Added to the denominator, at least 0.
        amsgrad:
            Whether the denominator never shrinks.
        hyper_lr:
            As for :class:`~optuna_ext.HypergradientSGD`, but Baydin's default for the additive
            rule is 1e-7 here.

    Raises:
        TypeError: If ``lr`` is not a number.
        ValueError: If an argument is out of its range or not one of its choices.
        RuntimeError: As :class:`~optuna_ext.HypergradientSGD`.

    .. seealso::
        D. P. Kingma, J. Ba (2015), *Adam: a method for stochastic optimization*, ICLR; A. G.
        Baydin et al. (2018), *Online learning rate adaptation with hypergradient descent*, ICLR.
    """

    _additive_hyper_lr = 1e-7

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        hyper_lr: float | None = None,
        rule: Rule = "exponential",
        per_group: bool = True,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"`betas` must be in [0, 1), but got {betas}.")
        if eps < 0:
            raise ValueError(f"`eps` must be at least 0, but got {eps}.")
        super().__init__(
            params,
            hyper_lr=hyper_lr,
            rule=rule,
            per_group=per_group,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's fused and capturable optimizers count on the device; here every step is read.
        for each in self.state.values():
            if "step" in each:
                each["step"] = torch.as_tensor(each["step"], dtype=torch.float32, device="cpu")

    def _descend(self, group: dict[str, Any], moving: Moving) -> None:
        for p, state in zip(moving.params, moving.states, strict=True):
            if "step" not in state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(p)
        torch._foreach_add_([state["step"] for state in moving.states], _ONE, alpha=1.0)
        # One bias correction for many: nearly always all have made as many steps.
        counts = [state["step"].item() for state in moving.states]
        for count in set(counts):
            self._step(group, _chosen(moving, [each == count for each in counts]), count)

    def _step(self, group: dict[str, Any], moving: Moving, count: float) -> None:
        """Do what torch's foreach implementation does; without hyper step in its order."""
        params, means = _real(moving.params), _real([s["exp_avg"] for s in moving.states])
        squares = _squares(group, moving)
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, _real(moving.grads), 1 - beta1)
        correction1, correction2 = 1 - beta1**count, (1 - beta2**count) ** 0.5
        decay = 0.0 if self._decays_coupled else group["weight_decay"]
        if group["hyper_lr"] == 0:
            if decay != 0:
                torch._foreach_mul_(params, 1 - group["lr"] * decay)
            below = torch._foreach_sqrt(squares)
            torch._foreach_div_(below, [correction2] * len(below))
            torch._foreach_add_(below, group["eps"])
            scales = [group["lr"] / correction1 * -1] * len(below)
            torch._foreach_addcdiv_(params, means, below, scales)
            return
        # One number corrects both means: that saves to go through the weights twice.
        factor = correction2 / correction1
        us = _quotients(moving, means, squares, eps=group["eps"] * correction2)
        if decay != 0:
            torch._foreach_add_(us, params, alpha=decay / factor)
        torch._foreach_add_(params, us, alpha=-group["lr"] * factor)
        for state, u in zip(moving.states, us, strict=True):
            state["direction"], state["factor"] = u, factor


class HypergradientAdamW(HypergradientAdam):
    """AdamW that tunes its own learning rate while it trains, by hypergradient descent.

    See :class:`~optuna_ext.HypergradientSGD` for the method and
    :class:`~optuna_ext.HypergradientAdam` for the arguments. The learning rate scales the weight
    decay too, so the decay is part of the direction whose slope is followed. It takes the place
    of ``torch.optim.AdamW`` together with its scheduler and reads its state; with ``hyper_lr=0``
    it is ``torch.optim.AdamW(foreach=True)`` bit for bit.

    Example:

        .. testcode::

            import torch
            from torch.nn.functional import mse_loss
            from optuna_ext import HypergradientAdamW

            model = torch.nn.Linear(3, 1)
            optimizer = HypergradientAdamW(model.parameters(), lr=1e-6, weight_decay=0.1)
            x = torch.randn(64, 3)
            for _ in range(20):
                optimizer.zero_grad()
                mse_loss(model(x), x.sum(1, keepdim=True)).backward()
                optimizer.step()
            print(optimizer.param_groups[0]["lr"])

    Raises:
        TypeError: If ``lr`` is not a number.
        ValueError: If an argument is out of its range or not one of its choices.
        RuntimeError: As :class:`~optuna_ext.HypergradientSGD`.

    .. seealso::
        I. Loshchilov, F. Hutter (2019), *Decoupled weight decay regularization*, ICLR.
    """

    _decays_coupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        hyper_lr: float | None = None,
        rule: Rule = "exponential",
        per_group: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            hyper_lr=hyper_lr,
            rule=rule,
            per_group=per_group,
        )


def _squares(group: dict[str, Any], moving: Moving) -> list[Tensor]:
    """Return the mean squares, with this step's gradients in them; their maxima if so wanted."""
    grads, squares = _real(moving.grads), _real([s["exp_avg_sq"] for s in moving.states])
    beta2 = group["betas"][1]
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    if group["amsgrad"]:
        largest = _real([s["max_exp_avg_sq"] for s in moving.states])
        torch._foreach_maximum_(largest, squares)
        return largest
    return squares


def _quotients(
    moving: Moving, means: list[Tensor], squares: list[Tensor], *, eps: float
) -> list[Tensor]:
    """Return ``mean / (sqrt(square) + eps)``."""
    if all(square.is_cpu for square in squares):
        us = _real(memory_for(moving))
        for u, mean, square in zip(us, means, squares, strict=True):
            torch.sqrt(square, out=u).add_(eps)
            torch.div(mean, u, out=u)
        return us
    below = torch._foreach_sqrt(squares)
    torch._foreach_add_(below, eps)
    return list(torch._foreach_div(means, below))


def _chosen(moving: Moving, mask: list[bool]) -> Moving:
    if all(mask):
        return moving
    return Moving(
        params=list(itertools.compress(moving.params, mask)),
        grads=list(itertools.compress(moving.grads, mask)),
        states=list(itertools.compress(moving.states, mask)),
    )


def _real(tensors: list[Tensor]) -> list[Tensor]:
    """Return complex tensors as real ones with a dimension more, others as they are."""
    return [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
