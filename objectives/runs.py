"""A network in training, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from typing import Literal
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from objectives.data import Data
from objectives.nets import seeded
from optuna_ext.online import Recorder


if TYPE_CHECKING:
    from objectives.training import Recipe

_ROWS_AT_ONCE = 2048  # rows evaluated at once, which bounds the memory of the activations


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How good a network is on some rows.

    Args:
        loss:
            Mean cross-entropy in nats.
        accuracy:
            Share of the rows classified correctly, in ``[0, 1]``.
    """

    loss: float
    accuracy: float


class Run:
    """A network in training on one data set.

    Args:
        recipe:
            What to train.
        data:
            The data, on ``device``.
        device:
            Where to train.
        seed:
            As for :func:`objectives.training.fit`.
        amp:
            As for :func:`objectives.training.fit`.
        compile:
            As for :func:`objectives.training.fit`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        *,
        device: torch.device,
        seed: int = 0,
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        self.data = data
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)
        with seeded(seed):  # on the CPU, too: the same on every device
            self.model = recipe.model(self.generator)
        self.model.to(device)
        self.optimizer = recipe.optimizer(self.model.parameters())
        self.recorder = Recorder(self.optimizer) if recipe.recorded else None
        self.forward = torch.compile(self.model) if compile else self.model
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)

    def things(self) -> dict[str, Any]:
        """Return everything that changes in training, to be kept in a checkpoint."""
        things: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "generator": self.generator,
        }
        return things if self.recorder is None else {**things, "recorder": self.recorder}

    @property
    def n_parameters(self) -> int:
        """The number of weights and biases."""
        return self.recipe.n_parameters or sum(p.numel() for p in self.model.parameters())

    def train_epoch(self) -> float:
        """Go through the training rows; return the mean loss of the steps."""
        self.model.train()
        total = self.data.train_x.new_zeros(())
        steps = 0
        for _ in range(self.recipe.passes_per_epoch):
            for x, y in self._batches():
                self.optimizer.zero_grad()
                with self.autocast:
                    loss = _loss(self.forward(x), y)
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                total += loss.detach()
                steps += 1
        return total.item() / steps

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Split the rows, in a new order; they are on the device, so nothing is copied to it."""
        x, y = self.data.train_x, self.data.train_y
        if self.recipe.batch_size is None or self.recipe.batch_size >= len(x):
            yield x, y
            return
        order = torch.randperm(len(x), generator=self.generator).to(x.device)
        for rows in torch.split(order, self.recipe.batch_size):
            yield x[rows], y[rows]

    @torch.no_grad()
    def evaluate(self, part: Literal["train", "valid", "test"]) -> Evaluation:
        """Measure the network; every row weighs the same, however the rows are split."""
        self.model.eval()
        x, y = getattr(self.data, f"{part}_x"), getattr(self.data, f"{part}_y")
        loss = x.new_zeros(())
        correct = y.new_zeros(())
        for rows, classes in zip(x.split(_ROWS_AT_ONCE), y.split(_ROWS_AT_ONCE), strict=True):
            with self.autocast:
                outputs = self.forward(rows)
                loss += _loss(outputs, classes) * len(rows)
            correct += (_classes(outputs) == classes).sum()
        return Evaluation(loss=loss.item() / len(x), accuracy=correct.item() / len(x))


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.shape[1] == 1:  # the log-odds of class 1
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype))
    return F.cross_entropy(outputs, y)


def _classes(outputs: Tensor) -> Tensor:
    return (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
