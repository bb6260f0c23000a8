"""The networks of the objectives.

One output means the log-odds of class 1, several outputs mean one logit per class; no network ends
in a sigmoid or softmax, because the loss contains it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
import threading

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn

from optuna_ext.fused import Dropout


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}

_seeding = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make the weights of the networks built inside depend on ``seed`` alone.

    torch's layers draw their weights from the one CPU generator of the process. It is restored
    afterwards, and only one thread at a time may seed it.
    """
    with _seeding, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


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
            Its seed decides the masks of the dropout; needed when ``dropout`` is positive.

    Returns:
        A network from ``(n, widths[0])`` to ``(n, widths[-1])``.

    Raises:
        ValueError: If ``dropout`` is positive and there is no ``generator``.
    """
    if dropout > 0 and generator is None:
        raise ValueError(f"dropout={dropout} needs a generator, whose seed decides its masks.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        if generator is not None and dropout > 0:
            seed = generator.initial_seed()
            layers.append(Dropout(dropout, seed=seed, layer=len(layers)))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def lenet(
    *, channels: tuple[int, int] = (6, 16), hidden: Sequence[int] = (120, 84)
) -> nn.Sequential:
    """Build a convolutional network in the style of LeNet-5, with ReLU and max pooling.

    Two convolutions of 5x5, the first padded, each followed by pooling of 2x2, then dense layers.
    The defaults are the sizes of LeCun et al. 1998, 61,706 parameters.

    Args:
        channels:
            Feature maps of the two convolutions.
        hidden:
            Units of the dense layers before the last.

    Returns:
        A network from ``(n, 784)``, images of 28x28 row by row, to ``(n, 10)``.
    """
    first, second = channels
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, first, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *mlp((second * 5 * 5, *hidden, 10)),
    )


BOUNDARY_WIDTHS: dict[str, tuple[int, ...]] = {
    "logistic": (2, 1),  # 3 parameters
    "simple": (2, 3, 1),  # 13 parameters
    "three-layer": (2, 5, 5, 1),  # 51 parameters
}
"""The networks of Auto-Tune (Jacobson & Gonzalez 2020)."""


def boundary_net(name: str) -> nn.Sequential:
    """Build a network on the plane, with the first weights of Auto-Tune.

    The weights are drawn by He initialization (normal), the biases as torch's layers do.

    Args:
        name:
            A key of ``BOUNDARY_WIDTHS``.

    Returns:
        A network from ``(n, 2)`` to ``(n, 1)``.

    Raises:
        ValueError: If there is no such network.
    """
    if name not in BOUNDARY_WIDTHS:
        raise ValueError(f"net must be one of {list(BOUNDARY_WIDTHS)}, but it is {name!r}.")
    net = mlp(BOUNDARY_WIDTHS[name])
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return net


def cat_net(hidden: Sequence[int], *, basis: NDArray[np.float64], seed: int) -> nn.Sequential:
    """Build the network of the deeplearning.ai course, for images described in another basis.

    Its first weights are standard normal over the square root of the fan-in, drawn layer by layer
    by NumPy's legacy generator, and its biases are zero; all in float64.

    Args:
        hidden:
            Units of the hidden layers.
        basis:
            ``(pixels, r)`` orthonormal: a network of ``basis.T @ image`` is built that is equal
            to the course's network of ``image``.
        seed:
            The course's is 1.

    Returns:
        A network from ``(n, r)`` to ``(n, 1)``.
    """
    rng = np.random.RandomState(seed)
    pixels, r = basis.shape
    net = mlp((r, *hidden, 1)).double()
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer, fan_in in zip(linear, (pixels, *hidden), strict=True):
        weight = rng.randn(layer.out_features, fan_in) / np.sqrt(fan_in)
        if layer is linear[0]:
            weight = weight @ basis
        layer.weight.data = torch.from_numpy(weight)
        nn.init.zeros_(layer.bias)
    return net
