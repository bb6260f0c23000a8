from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optuna_ext.online.hypergradient._optimizer import gradients_of
from optuna_ext.online.hypergradient._optimizer import HypergradientOptimizer
from optuna_ext.online.hypergradient._optimizer import real
from optuna_ext.online.hypergradient._optimizer import Rule


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
            Parameters, or groups of them with options of their own.
        lr:
            The learning rate of the first step, positive; 0 is possible with
            ``rule="additive"``. The current one is in ``param_groups[i]["lr"]``.
        betas:
            Decay of the running means of the gradient and of its square, both in ``[0, 1)``.
        eps:
            Added to the denominator, at least 0.
        weight_decay:
            Weight of the L2 penalty, at least 0.
        amsgrad:
            Whether the denominator never shrinks.
        maximize:
            Whether to go up instead of down.
        hyper_lr:
            The step size of the learning rate, at least 0; 0 keeps it as it is. The default,
            :obj:`None`, is 0.7 (exponential), 0.02 (multiplicative) or Baydin's 1e-7 (additive).
        rule:
            ``"exponential"``, ``"multiplicative"`` or ``"additive"``, as for
            :class:`~optuna_ext.HypergradientSGD`.
        per_group:
            Whether each group of parameters has a rate of its own.

    Raises:
        TypeError: If ``lr`` is not a number.
        ValueError: If an argument is out of its range or not one of its choices.
        RuntimeError: If a learning rate scheduler is put on it, or a gradient is sparse.

    .. seealso::
        D. P. Kingma, J. Ba (2015), *Adam: a method for stochastic optimization*, ICLR; A. G.
        Baydin et al. (2018), *Online learning rate adaptation with hypergradient descent*, ICLR.
    """

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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
        }
        super().__init__(
            params,
            defaults,
            hyper_lr=hyper_lr,
            rule=rule,
            per_group=per_group,
            additive_hyper_lr=1e-7,
        )

    def _descend(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for state, p in zip(states, params, strict=True):
            if "step" not in state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(p)
            if group["hyper_lr"] != 0 and "direction" not in state:
                state["direction"] = torch.empty_like(p)
        torch._foreach_add_([state["step"] for state in states], 1)
        # One bias correction for many: nearly always all have made as many steps.
        counts = [state["step"].item() for state in states]
        for count in set(counts):
            some = [p for p, c in zip(params, counts, strict=True) if c == count]
            self._step(group, some, count)

    def _step(self, group: dict[str, Any], params: list[Tensor], count: float) -> None:
        """Do what torch's foreach implementation does; without hyper step in its order."""
        states = [self.state[p] for p in params]
        means, squares = (real([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq"))
        params, grads = real(params), real(gradients_of(params))
        grads = self._gradients(group, params, grads)
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = real([state["max_exp_avg_sq"] for state in states])
            torch._foreach_maximum_(largest, squares)
            squares = largest
        correction1, correction2 = 1 - beta1**count, (1 - beta2**count) ** 0.5
        decay = 0.0 if self._decays_coupled else group["weight_decay"]
        below = list(torch._foreach_sqrt(squares))
        if group["hyper_lr"] == 0:
            if decay != 0:
                torch._foreach_mul_(params, 1 - group["lr"] * decay)
            torch._foreach_div_(below, [correction2] * len(below))
            torch._foreach_add_(below, group["eps"])
            scales = [group["lr"] / correction1 * -1] * len(below)
            torch._foreach_addcdiv_(params, means, below, scales)
            return
        torch._foreach_add_(below, group["eps"] * correction2)
        us = real([state["direction"] for state in states])
        if decay == 0:
            torch._foreach_zero_(us)
        else:
            torch._foreach_copy_(us, params)
            torch._foreach_mul_(us, decay)
        torch._foreach_addcdiv_(us, means, below, [correction2 / correction1] * len(us))
        torch._foreach_add_(params, us, alpha=-group["lr"])


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
        RuntimeError: If a learning rate scheduler is put on it, or a gradient is sparse.

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
