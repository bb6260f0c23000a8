"""The networks of the objectives.

One output means the log-odds of class 1, several outputs mean one logit per class; no network ends
in a sigmoid or softmax, because the loss contains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch import Tensor


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Dropout(nn.Module):
    """Dropout whose masks come from its own generator.

    ``torch.nn.Dropout`` draws from the one global generator of the process, so two trials running
    in two threads (``optimize(n_jobs=2)``) would change each other's results.

    Args:
        p:
            The share of units set to zero during training, in ``[0, 1)``.
        generator:
            Where the masks come from; it lives on the device of the inputs.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Zero units at random and scale the others up; the identity in evaluation mode."""
        if not self.training:
            return x
        return x * self._mask(x) / (1 - self.p)

    @torch.compiler.disable  # the compiler does not know generators
    def _mask(self, x: Tensor) -> Tensor:
        return torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator)


def mlp(
    widths: Sequence[int],
    *,
    activation: str = "relu",
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Build a multilayer perceptron.

    Args:
        widths:
            Inputs, hidden units layer by layer, outputs. ``(784, 10)`` is softmax regression and
            ``(2, 1)`` logistic regression.
        activation:
            Name in ``ACTIVATIONS``, after every hidden layer.
        dropout:
            Share of hidden units dropped in training, in ``[0, 1)``.
        generator:
            Where the masks of the dropout come from; needed when ``dropout`` is positive.

    Returns:
        A network from ``(n, widths[0])`` to ``(n, widths[-1])``.

    Raises:
        ValueError: If ``dropout`` is positive and there is no ``generator``.
    """
    if dropout > 0 and generator is None:
        raise ValueError(f"dropout={dropout} needs a generator to draw its masks from.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        if generator is not None and dropout > 0:
            layers.append(Dropout(dropout, generator))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
