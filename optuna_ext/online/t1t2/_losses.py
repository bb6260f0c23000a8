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
        generator:
            Gives the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | None,
        hyperparameters: Sequence[Hyperparameter],
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.model = model
        self._loss = loss or _cross_entropy
        self._hyperparameters = hyperparameters
        self._generator = generator

    def forward(self, batch: Batch, values: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch with these values."""
        with ExitStack() as stack:
            for hyperparameter in self._hyperparameters:
                value = values[hyperparameter.name]
                batch = hyperparameter.transform(batch, value, self._generator)
                stack.enter_context(hyperparameter.perturb(self.model, value, self._generator))
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
        copies = {name: buffer.clone() for name, buffer in self.named_buffers()}
        loss = functional_call(self, copies, (batch, values))
        if not loss.requires_grad:
            raise ValueError("The training loss does not depend on the model's parameters.")
        names = [hyperparameter.name for hyperparameter in self._hyperparameters]
        found = torch.autograd.grad(loss, [raws[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                raise unused(name, "training loss")

    def in_graph(
        self,
        batch: Batch,
        values: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        *,
        scale: Tensor | None,
        leaves_traces: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its gradients by ``params``, whose graph leads to the values.

        Args:
            batch: A batch.
            values: The values.
            params: What stands for the model's parameters, by their names.
            scale: Factor of the gradients.
            leaves_traces: Whether running statistics move.
        """
        stand_ins = {f"model.{name}": p for name, p in params.items()}
        if not leaves_traces:
            stand_ins |= {name: buffer.clone() for name, buffer in self.named_buffers()}
        loss = functional_call(self, stand_ins, (batch, values))
        inputs = list(params.values())
        scaled = loss if scale is None else loss * scale
        found = torch.autograd.grad(scaled, inputs, create_graph=True, allow_unused=True)
        return loss, {name: g for name, g in zip(params, found, strict=True) if g is not None}


class ValidationLoss:
    """A loss in evaluation mode.

    Args:
        model:
            The model.
        loss:
            Takes model and batch; the default is the cross-entropy.
    """

    def __init__(self, model: nn.Module, loss: ValidLoss | None) -> None:
        self._model = model
        self._loss = loss or (lambda model, batch: _cross_entropy(model, batch, {}))

    def gradients(
        self,
        batch: Batch,
        params: Iterable[Tensor],
        *,
        scale: Tensor | None,
        autocast: torch.autocast,
    ) -> dict[Tensor, Tensor]:
        """Return the gradients by the parameters that the loss of a batch depends on.

        ``scale`` is for the way back alone.
        """
        modes = {module: module.training for module in self._model.modules()}
        self._model.eval()
        try:
            with autocast:
                loss = self._loss(self._model, batch)
            params = list(params)
            found = torch.autograd.grad(
                loss if scale is None else loss * scale, params, allow_unused=True
            )
        finally:
            for module, training in modes.items():
                module.training = training
        used = {p: g for p, g in zip(params, found, strict=True) if g is not None}
        return used if scale is None else {p: g / scale for p, g in used.items()}


def unused(name: str, what: str) -> ValueError:
    """Return the error for a hyperparameter that something does not depend on."""
    return ValueError(f"The {what} does not depend on {name!r}: it cannot be tuned.")


def _cross_entropy(model: nn.Module, batch: Batch, h: Mapping[str, Tensor]) -> Tensor:
    del h  # it is at work in the batch and in the model
    x, y = batch
    return F.cross_entropy(model(x), y)
