"""Random numbers that belong to a member: no neighbor changes them.

``torch.nn.Dropout`` draws from the one generator of the process, so a network's masks depend on
whatever else is trained beside it. Here each number is a hash of (seed, layer, call, position),
as in Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"): a network gets the same
numbers alone, in any population and in any slot of it.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn
from torch import Tensor


class RandomLayer(nn.Module):
    """A layer with random numbers of its own: 32 bits per position and call."""

    key: Tensor
    calls: Tensor

    def __init__(self, *, seed: int, layer: int, persistent: bool) -> None:
        super().__init__()
        digest = hashlib.blake2b(f"{seed},{layer}".encode(), digest_size=4).digest()
        key = int.from_bytes(digest, "big", signed=True)
        self.register_buffer("key", torch.tensor(key, dtype=torch.int32), persistent=False)
        # What a checkpoint needs to go on with the same numbers.
        calls = torch.zeros((), dtype=torch.int32)
        self.register_buffer("calls", calls, persistent=persistent)

    def _bits(self, shape: torch.Size) -> Tensor:
        self.calls.add_(1)
        positions = torch.arange(math.prod(shape), dtype=torch.int32, device=self.key.device)
        return _mix(_mix(positions.view(shape)) ^ _mix(self.key ^ _mix(self.calls)))


def _mix(x: Tensor) -> Tensor:
    """Permute the 32-bit integers irregularly: Wellons' lowbias32, by signed arithmetic."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


class Dropout(RandomLayer):
    """Dropout whose masks depend on the seed, the layer and how often it was called, alone.

    It computes what ``torch.nn.Dropout`` does, but neither other networks nor other threads change
    its masks, and networks of different rates can be trained as one program.

    Args:
        p:
            The share of units set to zero during training, in ``[0, 1)``.
        seed:
            Fixes the masks.
        layer:
            Tells several layers of one network apart.
        channels:
            Whether to drop whole channels, ``(n, channels, ...)``, as ``torch.nn.Dropout2d``.
        persistent:
            Whether the number of calls is part of the state dict, so that a network that is saved
            and loaded goes on with the same masks.

    Raises:
        ValueError: If ``p`` is not in ``[0, 1)``.

    Example:
        >>> import torch
        >>> from optuna_ext.fused import Dropout
        >>> dropout = Dropout(0.5, seed=1)
        >>> dropout(torch.ones(1000)).mean().round(decimals=1)
        tensor(1.)
        >>> dropout.eval()(torch.ones(2))
        tensor([1., 1.])
    """

    threshold: Tensor

    def __init__(
        self,
        p: float,
        *,
        seed: int = 0,
        layer: int = 0,
        channels: bool = False,
        persistent: bool = True,
    ) -> None:
        super().__init__(seed=seed, layer=layer, persistent=persistent)
        if not 0 <= p < 1:
            raise ValueError(f"p must be in [0, 1), but it is {p}.")
        threshold = torch.tensor(round(p * 2**32) - 2**31, dtype=torch.int32)
        self.register_buffer("threshold", threshold, persistent=False)
        self.channels = channels

    @property
    def p(self) -> float:
        """The share of units set to zero."""
        return (int(self.threshold) + 2**31) / 2**32

    def forward(self, x: Tensor) -> Tensor:
        """Zero units at random and scale the others up; the identity in evaluation mode."""
        if not self.training:
            return x
        bits = self._bits(x.shape[:2] if self.channels else x.shape)
        if self.channels:
            bits = bits.view(*bits.shape, *[1] * (x.dim() - 2))
        kept = 0.5 - self.threshold.to(x.dtype) / 2**32
        return torch.where(bits >= self.threshold, x / kept, 0.0)

    def extra_repr(self) -> str:
        """Describe the layer as ``torch.nn.Dropout`` does."""
        return f"p={self.p:.6g}"


class GaussianNoise(RandomLayer):
    """Normal noise added during training, which depends on seed, layer and calls alone.

    Args:
        std:
            The standard deviation, at least 0.
        seed:
            Fixes the noise.
        layer:
            Tells several layers of one network apart.
        persistent:
            As for :class:`Dropout`.

    Raises:
        ValueError: If ``std`` is negative.

    Example:
        >>> import torch
        >>> from optuna_ext.fused import GaussianNoise
        >>> GaussianNoise(0.1, seed=1)(torch.zeros(10_000)).std().round(decimals=2)
        tensor(0.1000)
    """

    std: Tensor

    def __init__(
        self, std: float, *, seed: int = 0, layer: int = 0, persistent: bool = True
    ) -> None:
        super().__init__(seed=seed, layer=layer, persistent=persistent)
        if std < 0:
            raise ValueError(f"std must be at least 0, but it is {std}.")
        self.register_buffer("std", torch.tensor(float(std)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add noise; the identity in evaluation mode."""
        if not self.training:
            return x
        # 24 bits, the middles of 2^24 cells of (-1, 1): exact in float32, and never -1 or 1.
        uniform = ((self._bits(x.shape) >> 8).to(x.dtype) + 0.5) / 2**23
        return x + self.std.to(x.dtype) * math.sqrt(2) * torch.erfinv(uniform)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"std={self.std:.6g}"


_DROPOUTS: dict[type[nn.Module], bool] = {
    nn.Dropout: False,
    nn.Dropout1d: True,
    nn.Dropout2d: True,
    nn.Dropout3d: True,
}


def is_counter(buffer: str) -> bool:
    """Whether a buffer, by its name, tells how often a random layer was called."""
    return buffer.rpartition(".")[2] == "calls"


def own_randomness(model: nn.Module, seed: int) -> nn.Module:
    """Replace torch's dropout layers of a network by ones that belong to it; return the network.

    Its state dict keeps its keys.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in _DROPOUTS
    ]
    for layer, (parent, name, child) in enumerate(found):
        # torch's p may be 1; then nothing is left to scale.
        p = min(float(child.p), 1 - 2**-24)  # type: ignore[arg-type]
        new = Dropout(p, seed=seed, layer=layer, channels=_DROPOUTS[type(child)], persistent=False)
        setattr(parent, name, new.train(child.training))
    return model
