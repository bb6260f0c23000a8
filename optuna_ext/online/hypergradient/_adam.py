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
        for p in params:
            if "step" not in self.state[p]:
                self._begin(group, p)
            self.state[p]["step"] += 1
        # One bias correction for many: nearly always all have made as many steps.
        counts = [self.state[p]["step"].item() for p in params]
        for count in set(counts):
            some = [p for p, c in zip(params, counts, strict=True) if c == count]
            self._step(group, some, count)

    def _begin(self, group: dict[str, Any], p: Tensor) -> None:
        self.state[p]["step"] = torch.tensor(0.0)
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if name != "max_exp_avg_sq" or group["amsgrad"]:
                self.state[p][name] = torch.zeros_like(p)

    def _step(self, group: dict[str, Any], params: list[Tensor], count: float) -> None:
        """Do what torch's foreach implementation does, in its order."""
        states = [self.state[p] for p in params]
        means, squares = (real([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq"))
        grads = self._gradients(group, real(params), real(gradients_of(params)))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = real([state["max_exp_avg_sq"] for state in states])
            torch._foreach_maximum_(largest, squares)
            squares = largest
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count
        denominators = list(torch._foreach_sqrt(squares))
        torch._foreach_div_(denominators, [correction2**0.5] * len(params))
        torch._foreach_add_(denominators, group["eps"])
        step_sizes = [group["lr"] / correction1 * -1] * len(params)
        torch._foreach_addcdiv_(real(params), means, denominators, step_sizes)
        if group["hyper_lr"] != 0:
            us = self._directions(group, params, means, denominators, correction1)
            for state, u in zip(states, us, strict=True):
                state["direction"] = u

    def _directions(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        means: list[Tensor],
        denominators: list[Tensor],
        correction: float,
    ) -> list[Tensor]:
        """Return ``u`` in place of the denominators, while all of it is in the cache."""
        for mean, denominator in zip(means, denominators, strict=True):
            torch.div(mean, denominator, out=denominator)
        if correction != 1:  # in the first 350 steps
            torch._foreach_div_(denominators, correction)
        return denominators


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

    def _step(self, group: dict[str, Any], params: list[Tensor], count: float) -> None:
        if group["weight_decay"] != 0:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        super()._step(group, params, count)

    def _directions(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        means: list[Tensor],
        denominators: list[Tensor],
        correction: float,
    ) -> list[Tensor]:
        us = super()._directions(group, params, means, denominators, correction)
        if group["weight_decay"] != 0:
            # u + weight_decay * theta, with the parameters before the step: those after it are
            # (1 - lr * weight_decay) * theta - lr * u.
            torch._foreach_add_(us, real(params), alpha=group["weight_decay"])
            torch._foreach_div_(us, 1 - group["lr"] * group["weight_decay"])
        return us
