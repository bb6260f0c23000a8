from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext._checks import check_int
from optuna_ext.online.t1t2._hyper import HyperOptimizer
from optuna_ext.online.t1t2._hyperparameters import Batch
from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._hyperparameters import L2
from optuna_ext.online.t1t2._inner import check_optimizer
from optuna_ext.online.t1t2._inner import groups_of
from optuna_ext.online.t1t2._inner import is_decoupled
from optuna_ext.online.t1t2._lookback import LastStep
from optuna_ext.online.t1t2._lookback import LastSteps
from optuna_ext.online.t1t2._losses import Loss
from optuna_ext.online.t1t2._losses import TrainingLoss
from optuna_ext.online.t1t2._losses import ValidationLoss
from optuna_ext.online.t1t2._losses import ValidLoss
from optuna_ext.schedule import Schedule


class T1T2:
    """Tunes regularization by the gradient of a validation loss, inside one training.

    Every ``every`` steps the tuner asks how the step just made on a batch of the training set T1
    would have to be different for a batch of the validation set T2, and moves the
    hyperparameters that way: ``d C2(theta') / d h`` with ``theta' = theta + U(grad C1(theta; h))``
    and ``U`` the step of the optimizer, exactly. It takes SGD with and without momentum, Adam and
    AdamW, and hyperparameters of the training loss: :class:`L2`, :class:`InputNoise`,
    :class:`HiddenNoise`, :class:`Dropout`, :class:`LabelSmoothing`, :class:`Mixup` of
    ``optuna_ext.online.t1t2``, or any ``Hyperparameter`` that the loss takes. The validation loss
    is measured in evaluation mode, without noise, penalty or altered labels.

    T2 is used up by tuning: neither choose between trials nor report results on it.

    Example:

        .. testcode::

            import torch
            from optuna_ext import T1T2
            from optuna_ext.online.t1t2 import InputNoise, L2

            x = torch.randn(200, 8)
            y = (x[:, 0] > 0).long()
            model = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
            )
            optimizer = torch.optim.Adam(model.parameters())
            tuner = T1T2(model, optimizer, [L2(per_layer=True), InputNoise()], n_steps=100)
            for _ in range(100):
                rows = torch.randint(100, (20,))
                tuner.step((x[rows], y[rows]), (x[100:], y[100:]))
            print(tuner.values)

    A loop of your own, with clipping, say, does the three parts of :meth:`step` itself::

        tuner.backward(batch)  # sets the gradients
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # taken for constant
        optimizer.step()
        tuner.update(next(t2) if tuner.is_due else None)

    Args:
        model:
            The model in training. Its layers may be frozen and share weights.
        optimizer:
            Its ``torch.optim.SGD``, ``Adam`` or ``AdamW``, or ours by these names.
        hyperparameters:
            What to tune.
        n_steps:
            How many steps the training has. The step size of the hyperparameters follows from it
            and from their ranges.
        loss:
            ``loss(model, batch, h)`` of a training batch, with ``h`` the values by name. The
            default is the cross-entropy of ``(inputs, classes)``.
        valid_loss:
            ``valid_loss(model, batch)`` of a batch of T2. The default is the cross-entropy.
        every:
            A hyperparameter step follows every ``every`` training steps.
        trace:
            Discount in ``[0, 1)`` with which L2 remembers the effect of earlier steps; 0 looks
            at the last step only. It costs a few operations per weight in every step.
        unroll:
            How many steps the derivative goes back through, up to ``every``. More than 1
            multiplies time and memory of those steps.
        hold_length:
            Whether the length of the training gradient counts as given in the derivatives by
            anything but L2. Noise makes gradients longer, and one step ahead a longer step looks
            good, but Adam soon divides by the length: without this, noise grows too large where
            the net does not learn by heart. The derivative is that of a step along the gradient
            scaled to its present length.
        schedule:
            Values to follow instead of tuning, as :attr:`schedule` gives them.
        amp:
            Whether what is computed for tuning alone, but not the training step, is in bfloat16
            where torch holds that to be safe. It is faster where the processor knows bfloat16.
        seed:
            Fixes the noise.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, a hyperparameter does not fit the model,
            or the optimizer decays weights that L2 is to decay; at the first step, if the loss
            does not depend on a hyperparameter.

    .. seealso::
        J. Luketina, M. Berglund, K. Greff, T. Raiko (2016), *Scalable gradient-based tuning of
        continuous regularization hyperparameters*, ICML; F. Fioravanti (2020), *Online
        hyper-parameters optimization*.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        hyperparameters: Sequence[Hyperparameter],
        *,
        n_steps: int | None = None,
        loss: Loss | None = None,
        valid_loss: ValidLoss | None = None,
        every: int = 10,
        trace: float = 0.0,
        unroll: int = 1,
        hold_length: bool = False,
        schedule: Schedule | None = None,
        amp: bool = False,
        seed: int = 0,
    ) -> None:
        self.every = check_int("every", every, low=1)
        self._unroll = check_int("unroll", unroll, low=1, high=self.every)
        if not 0 <= trace < 1:
            raise ValueError(f"`trace` must be in [0, 1), but got {trace}.")
        if trace > 0 and unroll > 1:
            raise ValueError("`trace` and `unroll` are two ways to look back: use one of them.")
        if unroll > 1 and (amp or hold_length):
            raise ValueError("`amp` and `hold_length` work with `unroll=1` only.")
        if n_steps is not None:
            check_int("n_steps", n_steps, low=1)
        if (n_steps is None) == (schedule is None):
            raise ValueError("Give `n_steps` to tune or `schedule` to follow, and not both.")
        check_optimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        self._params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._groups = groups_of(optimizer)
        self._in_loss = [h for h in hyperparameters if not isinstance(h, L2)]
        self._decayed = self._find_decayed(hyperparameters)
        first = next(iter(self._params.values()))
        self._device = first.device
        self._amp = bool(amp)
        self._hyper = HyperOptimizer(
            hyperparameters,
            model,
            dtype=torch.promote_types(first.dtype, torch.float32),
            device=first.device,
            n_updates=max(1, n_steps // self.every) if n_steps is not None else 1,
        )
        self._lookback: LastStep | LastSteps = (
            LastStep(optimizer, self._decayed, trace=trace, hold_length=bool(hold_length))
            if unroll == 1
            else LastSteps(optimizer, self._decayed, n=unroll)
        )
        self._keeps_graph = bool(self._in_loss) or unroll > 1
        self._generator = torch.Generator(first.device).manual_seed(seed)
        self._loss = TrainingLoss(model, loss, self._in_loss, generator=self._generator)
        self._valid_loss = ValidationLoss(model, valid_loss)
        self._followed = schedule
        self.n_steps = 0
        self.hypergradients: dict[str, float] = {}
        self._schedule = Schedule()
        self._watching = False
        self._take_values()

    def _find_decayed(self, hyperparameters: Sequence[Hyperparameter]) -> dict[Tensor, str]:
        decayed: dict[Tensor, str] = {}
        for hyperparameter in hyperparameters:
            if isinstance(hyperparameter, L2):
                for name, params in hyperparameter.layers(self.model).items():
                    decayed |= dict.fromkeys(params, name)
        for p in decayed:
            if p not in self._groups:
                raise ValueError("L2 is to decay a weight that the optimizer does not have.")
            if self._groups[p]["weight_decay"] != 0:
                raise ValueError(
                    "L2 takes the place of the optimizer's weight decay: build "
                    f"{type(self.optimizer).__name__} with weight_decay=0 instead of "
                    f"{self._groups[p]['weight_decay']}."
                )
        return decayed

    @property
    def is_due(self) -> bool:
        """Whether the step in progress ends with a step of the hyperparameters."""
        return self._steps_to_go == 0

    @property
    def values(self) -> dict[str, float]:
        """The present values by name; per layer as ``l2/LAYER``."""
        return dict(self._numbers)

    @property
    def n_skipped(self) -> int:
        """How many hypergradients were not finite and therefore skipped."""
        return self._hyper.n_skipped

    @property
    def schedule(self) -> Schedule:
        """The values of all steps so far, to be looked at, saved, or followed again."""
        return Schedule.from_dict(self._schedule.to_dict())

    @property
    def _steps_to_go(self) -> int | None:
        """Number of steps after the one in progress until the hyperparameters move, if ever."""
        return None if self._followed is not None else -(self.n_steps + 1) % self.every

    def step(self, batch: Batch, valid_batch: Batch | Iterator[Batch] | None = None) -> Tensor:
        """Train on a batch of T1 and, if it is due, tune on a batch of T2.

        Args:
            batch:
                What the loss takes.
            valid_batch:
                A batch of T2, or an iterator that yields one whenever one is needed.

        Returns:
            The training loss before the step, without L2; shape ``()``, detached.
        """
        loss = self.backward(batch)
        self.optimizer.step()
        if self.is_due and isinstance(valid_batch, Iterator):
            valid_batch = next(valid_batch, None)
        self.update(valid_batch if self.is_due else None)
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Set the gradients of a training batch, L2 included, for the optimizer's next step.

        Returns:
            The training loss without L2; shape ``()``, detached.
        """
        if self._followed is not None:
            self._hyper.set(self._followed.at(min(self.n_steps + 1, self._followed.last)))
            self._take_values()
        to_go = self._steps_to_go
        self._watching = to_go is not None and self._lookback.watches(to_go)
        if self.n_steps == 0:
            self._check_use(batch)
        if self._watching:
            self._values = self._hyper.values()
            copies = self._lookback.begin(list(self._params.values()))
            stand_ins = {name: copies[p] for name, p in self._params.items()}
        in_graph = self._watching and self._keeps_graph
        if in_graph and not self._amp:
            loss, gradients = self._loss.in_graph(batch, self._values, stand_ins)
            for name, p in self._params.items():
                p.grad = gradients[name].detach().clone() if name in gradients else None
        else:
            noise = self._generator.get_state()
            self.optimizer.zero_grad()
            loss = self._loss(batch, self._constants)
            torch.autograd.backward(loss)
            if in_graph:  # once more, for the derivatives alone
                self._generator.set_state(noise)
                with torch.random.fork_rng(), self._autocast():
                    _, gradients = self._loss.in_graph(batch, self._values, stand_ins)
        rates = self._decay()
        if self._watching:
            found: dict[Tensor, Tensor] = {}
            if in_graph:
                found |= {self._params[name]: g for name, g in gradients.items()}
            self._lookback.keep(found, rates)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._amp)

    @torch.no_grad()
    def _decay(self) -> dict[Tensor, float]:
        """Return the learning rate of each parameter that L2 has decayed."""
        rates: dict[Tensor, float] = {}
        for p, name in self._decayed.items():
            if p.grad is None:
                continue
            rates[p] = float(self._groups[p]["lr"])
            if is_decoupled(self.optimizer):
                p.mul_(1 - rates[p] * self._numbers[name])
            else:
                p.grad.add_(p, alpha=self._numbers[name])
        return rates

    def update(self, valid_batch: Batch | None = None) -> None:
        """Take note of the optimizer's step and, if it is due, move the hyperparameters.

        Args:
            valid_batch:
                A batch of T2; needed when :attr:`is_due`.

        Raises:
            ValueError: If it is needed and not given, or the gradient of the training loss does
                not depend on a hyperparameter.
        """
        self._schedule.record(self.n_steps + 1, **self._numbers)
        if self._watching:
            self._lookback.advance(self._values)
        if self.is_due:
            if valid_batch is None:
                raise ValueError(
                    f"Step {self.n_steps + 1} needs a batch of T2, but there is none: repeat it "
                    "with itertools.cycle if it is shorter than the training."
                )
            self._tune(valid_batch)
        self.n_steps += 1

    def _tune(self, valid_batch: Batch) -> None:
        v = self._valid_loss.gradients(
            valid_batch, self._params.values(), autocast=self._autocast()
        )
        pairs = self._lookback.pairs(v, self._values)
        pairs = [(output, weight) for output, weight in pairs if output.requires_grad]
        raws = self._hyper.raws
        found: Sequence[Tensor | None] = torch.autograd.grad(
            [output for output, _ in pairs],
            list(raws.values()),
            [weight.to(output.dtype) for output, weight in pairs],
            allow_unused=True,
        )
        gradients: dict[str, Tensor] = {}
        for name, gradient in zip(raws, found, strict=True):
            if gradient is None and not self.hypergradients:
                raise _unused(name, "gradient of the training loss")
            # Later on it may be a layer that a batch has passed by.
            gradients[name] = torch.zeros_like(raws[name]) if gradient is None else gradient
        self.hypergradients = {name: gradient.item() for name, gradient in gradients.items()}
        self._hyper.step(gradients)
        self._take_values()

    def _check_use(self, batch: Batch) -> None:
        """Name a hyperparameter that the loss does not depend on, before any training."""
        if not self._in_loss:
            return
        state = self._generator.get_state()
        raws = {h.name: self._hyper.raws[h.name] for h in self._in_loss}
        with torch.random.fork_rng():
            loss = self._loss.without_traces(batch, self._hyper.values())
        self._generator.set_state(state)
        if not loss.requires_grad:
            raise ValueError("The training loss does not depend on the model's parameters.")
        found = torch.autograd.grad(loss, list(raws.values()), allow_unused=True)
        for name, gradient in zip(raws, found, strict=True):
            if gradient is None:
                raise _unused(name, "training loss")

    def _take_values(self) -> None:
        self._constants = {name: v.detach() for name, v in self._hyper.values().items()}
        self._numbers = {name: v.item() for name, v in self._constants.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to go on, beside the model's and the optimizer's."""
        return {
            "hyper": self._hyper.state_dict(),
            "n_steps": self.n_steps,
            "schedule": self._schedule.to_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another tuner was."""
        self._hyper.load_state_dict(state["hyper"])
        self.n_steps = state["n_steps"]
        self._schedule = Schedule.from_dict(state["schedule"])
        self._generator.set_state(state["generator"].cpu())
        self._take_values()


def _unused(name: str, what: str) -> ValueError:
    return ValueError(f"The {what} does not depend on {name!r}: it cannot be tuned.")
