"""Functions of torch, written so that vmap makes fast operations of them.

What vmap makes of a function is right but not always fast: a product of ``(rows, inputs)`` by
``(inputs, outputs)`` keeps the few units of a small layer adjacent in memory, where the matrix
routine takes six times as long as with the many rows adjacent; the loss of ten classes takes
longer than a layer of 64 units; and torch's pooling is thirty times as fast where the channels of
all members are adjacent. While :class:`Rewritten` is in use, calls of these functions, from
whatever module or loss, compute the same numbers in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if x.dim() != 2:
        return None
    z = weight @ x.mT  # (outputs, rows), which the next layer gets as it lies in memory
    return (z if bias is None else z + bias[:, None]).mT


def _cross_entropy(
    outputs: Tensor,
    y: Tensor,
    *,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    **rest: object,
) -> Tensor | None:
    if outputs.dim() != 2 or y.dim() != 1 or label_smoothing or not _plain(reduction, rest):
        return None
    logs = F.log_softmax(outputs.mT.contiguous(), 0)
    ignored = y == ignore_index
    own = logs.gather(0, y.masked_fill(ignored, 0)[None])[0].masked_fill(ignored, 0)
    return -own if reduction == "none" else -own.sum() / (~ignored).sum()


def _binary_cross_entropy(
    log_odds: Tensor, y: Tensor, *, reduction: str, **rest: object
) -> Tensor | None:
    if log_odds.shape != y.shape or not _plain(reduction, rest):
        return None
    # log(1 + exp(-z)) is exp(-z) in float64 too from 40 on.
    losses = (1 - y) * log_odds + F.softplus(-log_odds, threshold=40)
    return losses if reduction == "none" else losses.mean()


class _PerChannel(torch.autograd.Function):
    """Applies a function that treats channels alike, to the channels of all members at once.

    The channels of all are adjacent in memory then, and there are enough of them for a vector.
    """

    @staticmethod
    def forward(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
        x = x.movedim(in_dims[0], 1)  # (rows, members, channels, height, width)
        merged = x.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        found = function(merged)
        return found.view(len(found), *x.shape[1:3], *found.shape[2:]), 1


def _per_channel(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    found: Tensor = _PerChannel.apply(x, function)  # type: ignore[no-untyped-call]
    return found


def _conv2d(x: Tensor, weight: Tensor, *options: Any, **rest: Any) -> Tensor | None:
    if x.dim() != 4 or not x.is_cpu:
        return None
    x = _per_channel(x, lambda x: x)  # only to be laid out so
    return F.conv2d(x, weight, *options, **rest)


def _max_pool2d(x: Tensor, *options: Any, **rest: Any) -> Tensor | None:
    if x.dim() != 4 or not x.is_cpu or rest.get("return_indices"):
        return None
    return _per_channel(x, lambda x: F.max_pool2d(x, *options, **rest))


def _plain(reduction: str, options: Mapping[str, object]) -> bool:
    return reduction in ("none", "mean") and all(option is None for option in options.values())


_REWRITTEN: Mapping[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.max_pool2d: _max_pool2d,
    F.cross_entropy: _cross_entropy,
    F.binary_cross_entropy_with_logits: _binary_cross_entropy,
}


class Rewritten(TorchFunctionMode):
    """A context in which those functions are computed in the other way, where there is one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a function."""
        if func in _REWRITTEN:
            found = _REWRITTEN[func](*args, **(kwargs or {}))
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))
