"""Hyperparameters that change the labels of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from optuna_ext.online.t1t2._hyperparameters import Batch
from optuna_ext.online.t1t2._hyperparameters import Hyperparameter


class LabelSmoothing(Hyperparameter):
    """Share of the label that is spread evenly over all classes (Szegedy et al. 2016).

    Batches are pairs of inputs and classes; the loss sees probabilities instead of classes, which
    ``torch.nn.functional.cross_entropy`` takes as well.

    Args:
        n_classes:
            The number of classes.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self, n_classes: int, *, init: float = 0.05, low: float = 1e-3, high: float = 0.5
    ) -> None:
        super().__init__("label_smoothing", init=init, low=low, high=high, scale="logit")
        self.n_classes = n_classes

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Smooth the labels."""
        x, y = batch
        return x, _soft(y, self.n_classes, value.dtype) * (1 - value) + value / self.n_classes


class Mixup(Hyperparameter):
    """Strength of mixup (Zhang et al. 2018): how far a row is moved towards another one.

    A batch, a pair of inputs and classes, becomes ``(1 - r) * batch + r * shuffled batch`` with
    one ``r`` uniform in ``[0, strength]``; so do the labels, which become probabilities.

    Args:
        n_classes:
            The number of classes.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self, n_classes: int, *, init: float = 0.1, low: float = 1e-2, high: float = 0.9
    ) -> None:
        super().__init__("mixup", init=init, low=low, high=high, scale="logit")
        self.n_classes = n_classes

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Mix rows and labels."""
        x, y = batch
        share = value * torch.rand((), generator=generator, device=x.device, dtype=value.dtype)
        other = torch.randperm(len(x), generator=generator, device=x.device)
        soft = _soft(y, self.n_classes, value.dtype)
        return torch.lerp(x, x[other], share), torch.lerp(soft, soft[other], share)


def _soft(y: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    """Return probabilities, whose second dimension is the class, as cross-entropy takes them."""
    return y if y.is_floating_point() else F.one_hot(y, n_classes).to(dtype).movedim(-1, 1)
