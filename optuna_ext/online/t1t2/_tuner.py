from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from optuna_ext._allocator import keep_freed_memory
from optuna_ext._checks import check_int
from optuna_ext.online.t1t2._hyper import HyperOptimizer
from optuna_ext.online.t1t2._hyperparameters import Batch
from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._hyperparameters import L2
from optuna_ext.online.t1t2._inner import check_optimizer
from optuna_ext.online.t1t2._inner import groups_of
from optuna_ext.online.t1t2._lookback import LastStep
from optuna_ext.online.t1t2._losses import Loss
from optuna_ext.online.t1t2._losses import TrainingLoss
from optuna_ext.online.t1t2._losses import unused
from optuna_ext.online.t1t2._losses import ValidationLoss
from optuna_ext.online.t1t2._losses import ValidLoss
from optuna_ext.online.t1t2._penalty import Penalty
from optuna_ext.online.t1t2._precision import Precision
from optuna_ext.online.t1t2._step import Moment
from optuna_ext.online.t1t2._step import Randomness
from optuna_ext.online.t1t2._step import Scaling
from optuna_ext.online.t1t2._step import StepWatch
from optuna_ext.online.t1t2._unroll import LastSteps
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

    T2 is used up by tuning: neither choose between trials nor report results on it. On a CPU, the
    process keeps up to 1 GiB that it frees from then on.

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

    A learning rate scheduler may step before or after :meth:`update`, but not before the
    optimizer. With half precision the loss computes in ``torch.autocast`` itself, and the scaler
    is given to the tuner: :meth:`backward` scales, and takes the scale off the gradients again;
    a loop of your own calls ``scaler.step(optimizer)`` and ``scaler.update()``.

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
            How many steps the derivative goes back through, up to ``every``. With more than 1
            those steps are computed twice, and the second time all of them are in memory.
        hold_length:
            Whether the length of the training gradient counts as given in the derivatives by
            anything but L2. Noise makes gradients longer, and one step ahead a longer step looks
            good, but Adam soon divides by the length: without this, noise grows too large where
            the net does not learn by heart. The derivative is that of a step along the gradient
            scaled to its present length.
        schedule:
            Values to follow instead of tuning, as :attr:`schedule` gives them.
        scaler:
            The ``torch.amp.GradScaler`` of a training in float16. The steps that it leaves out
            change nothing, and the hypergradients of such a step are skipped.
        amp:
            Whether what is computed for tuning alone, but not the training step, is in bfloat16
            where torch holds that to be safe: the hypergradients are rounded a little then. The
            default, :obj:`None`, does so where it is faster and was measured: for models in
            float32 of a quarter of a million parameters or more, on CPUs with instructions for
            bfloat16, without a ``scaler``; with a warning, it stops doing so if the model fails.
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
        scaler: torch.amp.GradScaler | None = None,
        amp: bool | None = None,
        seed: int = 0,
    ) -> None:
        self.every = check_int("every", every, low=1)
        check_int("unroll", unroll, low=1, high=every)
        _check_choices(n_steps, schedule, trace=trace, unroll=unroll, hold_length=hold_length)
        check_optimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        groups = groups_of(optimizer)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if any(p.requires_grad for p in groups.keys() - trained.values()):
            raise ValueError("`optimizer` must not have trainable parameters beside the model's.")
        self._penalty = Penalty(model, optimizer, hyperparameters)
        self._params = {name: p for name, p in trained.items() if p in groups}
        self._in_loss = [h for h in hyperparameters if not isinstance(h, L2)]
        params = [*self._params.values()]
        if not params:
            raise ValueError("`optimizer` must have a trainable parameter of the model.")
        device = params[0].device
        if device.type == "cpu":
            keep_freed_memory()
        self._scaling = Scaling(scaler, device=device)
        if amp is None and scaler is not None:  # then the loss is in half precision already
            amp = False
        self._precision = Precision(amp, params)
        self._hyper = HyperOptimizer(
            hyperparameters, model, like=params[0], n_updates=max(1, (n_steps or 1) // self.every)
        )
        self._randomness = Randomness(torch.Generator(device).manual_seed(seed))
        self._loss = TrainingLoss(
            model,
            loss,
            self._in_loss,
            randomness=self._randomness,
            scaling=self._scaling,
            precision=self._precision,
        )
        self._valid_loss = ValidationLoss(
            model, valid_loss, scaling=self._scaling, precision=self._precision
        )
        known = optimizer, self._params, self._penalty.names
        self._last_step = (
            LastStep(*known, trace=trace, hold_length=bool(hold_length)) if unroll == 1 else None
        )
        self._lookback: LastStep | LastSteps = self._last_step or LastSteps(
            *known, gradients=self._loss.gradients_at, n=unroll
        )
        self._watch = StepWatch(optimizer, before=self._before_step)
        self._followed = schedule
        self.n_steps = 0
        self.hypergradients: dict[str, float] = {}
        self._schedule = Schedule()
        self._is_watching = False
        self._take_values()

    @property
    def amp(self) -> bool:
        """Whether what is computed for tuning alone is in bfloat16."""
        return self._precision.amp

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
        """How many hypergradients were skipped: not finite, or of a step not made."""
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

        Raises:
            TypeError: If ``valid_batch`` is a ``DataLoader``.
        """
        if isinstance(valid_batch, DataLoader):
            raise TypeError("`valid_batch` is a DataLoader: give itertools.cycle(it), made once.")
        loss = self.backward(batch)
        self._scaling.step(self.optimizer)
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
        if self.n_steps == 0 and self._in_loss:
            self._loss.check_use(batch, self._hyper.values(), self._hyper.raws)
        to_go = self._steps_to_go
        self._is_watching = to_go is not None and self._lookback.watches(to_go)
        if self._is_watching:
            moment = Moment(batch, self._randomness.state())
            self._lookback.begin(moment)
        graph_of = self._last_step if self.is_due and self._in_loss else None
        if graph_of is not None and not self.amp:
            loss = self._backward_in_graph(batch, graph_of)
        else:
            self.optimizer.zero_grad()
            loss = self._loss(batch, self._constants)
            torch.autograd.backward(self._scaling.times(loss))
            if graph_of is not None:  # once more, for the derivatives alone
                self._values = self._hyper.values()
                stand_ins = graph_of.stand_ins
                graph_of.keep(self._loss.gradients_at(moment, self._values, stand_ins))
        self._scaling.unscale(self.optimizer)
        self._penalty.add_to_gradients(self._numbers)
        self._watch.wait()
        return loss.detach()

    def _backward_in_graph(self, batch: Batch, graph_of: LastStep) -> Tensor:
        """Set the gradients, but keep the graph that leads from them to the values."""
        self._values = self._hyper.values()
        loss, gradients = self._loss.in_graph(batch, self._values, graph_of.stand_ins)
        for name, p in self._params.items():
            p.grad = gradients[name].detach().clone() if name in gradients else None
        graph_of.keep(self._scaling.without(gradients))
        return loss

    def _before_step(self) -> None:
        self._penalty.before_step(self._numbers)

    def update(self, valid_batch: Batch | None = None) -> None:
        """Take note of the optimizer's step and, if it is due, move the hyperparameters.

        Args:
            valid_batch:
                A batch of T2; needed when :attr:`is_due`.

        Raises:
            RuntimeError: If the optimizer has not made a step since :meth:`backward`.
            ValueError: If the batch is needed and not given, or the gradient of the training loss
                does not depend on a hyperparameter.
        """
        step = self.n_steps + 1
        if self.is_due and valid_batch is None:
            raise ValueError(
                f"Step {step} needs a batch of T2, but there is none: repeat it "
                "with itertools.cycle if it is shorter than the training."
            )
        groups = self._watch.take()
        if groups is None and not self._scaling.leaves_steps_out:
            raise RuntimeError(
                f"`update` of step {step} must come after `backward` and the optimizer's step."
            )
        self._schedule.record(step, **self._numbers)
        if groups is not None and self._is_watching:
            self._lookback.advance(groups, self._penalty.rates)
        if self.is_due and groups is not None:
            self._tune(valid_batch)
        elif self.is_due:
            self._lookback.forget()
            self._hyper.skip()
        self.n_steps += 1

    def _tune(self, valid_batch: Batch) -> None:
        v = self._valid_loss.gradients(valid_batch, self._params.values())
        if not (self._in_loss and self._last_step):  # else they are in the graph already
            self._values = self._hyper.values()
        pairs = self._lookback.pairs(v, self._values)
        derivatives = self._hyper.derivatives(pairs, scaling=self._scaling)
        for name in self._hyper.raws:
            if name not in derivatives and not self.hypergradients:
                raise unused(name, "gradient of the training loss")
        self.hypergradients = self._hyper.step(derivatives)
        self._take_values()

    def _take_values(self) -> None:
        self._constants = {name: v.detach() for name, v in self._hyper.values().items()}
        numbers = torch.stack(list(self._constants.values())).tolist()
        self._numbers: dict[str, float] = dict(zip(self._constants, numbers, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to go on, beside the model's and the optimizer's.

        Raises:
            RuntimeError: Between :meth:`backward` and :meth:`update`.
        """
        if self._watch.is_waiting:
            raise RuntimeError(f"Step {self.n_steps + 1} is half done: save after `update`.")
        return {
            "hyper": self._hyper.state_dict(),
            "hypergradients": dict(self.hypergradients),
            "lookback": self._lookback.state_dict(),
            "n_steps": self.n_steps,
            "schedule": self._schedule.to_dict(),
            "generator": self._randomness.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another tuner was."""
        self._hyper.load_state_dict(state["hyper"])
        self.hypergradients = dict(state["hypergradients"])
        self._lookback.load_state_dict(state["lookback"])
        self.n_steps = state["n_steps"]
        self._schedule = Schedule.from_dict(state["schedule"])
        self._randomness.load(state["generator"])
        self._take_values()


def _check_choices(
    n_steps: int | None,
    schedule: Schedule | None,
    *,
    trace: float,
    unroll: int,
    hold_length: bool,
) -> None:
    if not 0 <= trace < 1:
        raise ValueError(f"`trace` must be in [0, 1), but got {trace}.")
    if trace > 0 and unroll > 1:
        raise ValueError("`trace` and `unroll` are two ways to look back: use one of them.")
    if unroll > 1 and hold_length:
        raise ValueError("`hold_length` works with `unroll=1` only.")
    if n_steps is not None:
        check_int("n_steps", n_steps, low=1)
    if (n_steps is None) == (schedule is None):
        raise ValueError("Give `n_steps` to tune or `schedule` to follow, and not both.")
