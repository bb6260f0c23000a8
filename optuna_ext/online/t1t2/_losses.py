"""The training loss with all that disturbs it, and the validation loss without."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from optuna_ext.online.t1t2._hyperparameters import Batch
from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._precision import Precision
from optuna_ext.online.t1t2._step import Moment
from optuna_ext.online.t1t2._step import Randomness
from optuna_ext.online.t1t2._step import Scaling


Loss = Callable[[nn.Module, Batch, Mapping[str, Tensor]], Tensor]
ValidLoss = Callable[[nn.Module, Batch], Tensor]


class TrainingLoss(nn.Module):
    """A loss as a module, so that stand-ins for the model's parameters reach it.

    Args:
        model:
            The model.
        loss:
            Takes model, batch and values; the default is the cross-entropy.
        hyperparameters:
            What changes batch and model before.
        randomness:
            Gives the noise.
        scaling:
            Of the loss on its way back.
        precision:
            Of what only tuning needs.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        hyperparameters: Sequence[Hyperparameter],
        *,
        randomness: Randomness,
        scaling: Scaling,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = loss or _cross_entropy
        self._hyperparameters = hyperparameters
        self._randomness = randomness
        self._scaling = scaling
        self._precision = precision

    def forward(self, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch with these values."""
        generator = self._randomness.generator
        with ExitStack() as stack:
            for hyperparameter in self._hyperparameters:
                value = values[hyperparameter.name]
                batch = hyperparameter.transform(batch, value, generator)
                stack.enter_context(hyperparameter.perturb(self.model, value, generator))
            return self._loss(self.model, batch, values)

    def check_use(
        self, batch: Batch, values: Mapping[str, Tensor], raws: Mapping[str, Tensor]
    ) -> None:
        """Name a hyperparameter that the loss does not depend on, before any training.

        Args:
            batch: A batch.
            values: The values.
            raws: The raw numbers that the values come from, by name.

        Raises:
            ValueError: If there is one.
        """
        names = [hyperparameter.name for hyperparameter in self._hyperparameters]
        now = Moment(batch, self._randomness.state())

        def derivatives() -> tuple[Tensor | None, ...]:
            loss = self._loss_at(now, values, {})
            if not loss.requires_grad:
                raise ValueError("The training loss does not depend on the model's parameters.")
            of = [raws[name] for name in names]
            # What leads from the raw numbers to the values may be needed once more.
            return torch.autograd.grad(loss, of, allow_unused=True, retain_graph=True)

        found = self._precision.attempt(derivatives)
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                raise unused(name, "training loss")

    def in_graph(
        self, batch: Batch, values: Mapping[str, Tensor], params: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its gradients by ``params``, whose graph leads to the values.

        Args:
            batch: A batch.
            values: The values.
            params: What stands for the model's parameters, by their names.

        Returns:
            The gradients are multiplied by the factor of the scaling.
        """
        loss = functional_call(self, _within(params), (batch, values))
        return loss, self._gradients(loss, params)

    def gradients_at(
        self, moment: Moment, values: Mapping[str, Tensor], params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return such gradients of a moment in the past, as if nothing had happened since."""
        gradients = self._precision.attempt(
            lambda: self._gradients(self._loss_at(moment, values, params), params)
        )
        return self._scaling.without(gradients)

    def _loss_at(
        self, moment: Moment, values: Mapping[str, Tensor], params: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the loss of a moment, without a trace in generators and running statistics."""
        stand_ins = _within(params) | {name: b.clone() for name, b in self.named_buffers()}
        with self._randomness.back_at(moment.randomness), self._precision():
            loss: Tensor = functional_call(self, stand_ins, (moment.batch, values))
        return loss

    def _gradients(self, loss: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = torch.autograd.grad(
            self._scaling.times(loss),
            list(params.values()),
            create_graph=True,
            allow_unused=True,
        )
        return {name: g for name, g in zip(params, found, strict=True) if g is not None}


class ValidationLoss:
    """A loss in evaluation mode.

    Args:
        model:
            The model.
        loss:
            Takes model and batch; the default is the cross-entropy.
        scaling:
            Of the loss on its way back.
        precision:
            Of what only tuning needs.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ValidLoss | None,
        *,
        scaling: Scaling,
        precision: Precision,
    ) -> None:
        self._model = model
        self._loss = loss or (lambda model, batch: _cross_entropy(model, batch, {}))
        self._scaling = scaling
        self._precision = precision

    def gradients(self, batch: Batch, params: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Return the gradients by the parameters that the loss of a batch depends on."""
        params = list(params)
        modes = {module: module.training for module in self._model.modules()}
        self._model.eval()
        try:
            found = self._precision.attempt(lambda: self._compute(batch, params))
        finally:
            for module, training in modes.items():
                module.training = training
        used = {p: g for p, g in zip(params, found, strict=True) if g is not None}
        return self._scaling.without(used)

    def _compute(self, batch: Batch, params: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        with self._precision():
            loss = self._loss(self._model, batch)
        return torch.autograd.grad(self._scaling.times(loss), params, allow_unused=True)


def unused(name: str, what: str) -> ValueError:
    """Return the error for a hyperparameter that something does not depend on."""
    return ValueError(f"The {what} does not depend on {name!r}: it cannot be tuned.")


def _cross_entropy(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
    del h  # it is at work in the batch and in the model
    x, y = batch
    return F.cross_entropy(model(x), y)


def _within(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stand-ins by their names in :class:`TrainingLoss`."""
    return {f"model.{name}": p for name, p in params.items()}
