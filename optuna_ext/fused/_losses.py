"""Losses and metrics of populations: one number per row, and what differs by member."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from optuna_ext.fused._feed import rows_at_once


def binary_cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of two classes, in nats per row.

    Args:
        outputs:
            The log-odds of class 1, ``(n,)`` or ``(n, 1)``.
        y:
            The classes ``(n,)``, 0 or 1.

    Returns:
        ``(n,)``.

    Example:
        >>> import torch
        >>> from optuna_ext.fused import binary_cross_entropy
        >>> binary_cross_entropy(torch.zeros(2, 1), torch.tensor([0, 1]))
        tensor([0.6931, 0.6931])
    """
    # -log sigmoid(-z) = softplus(z); beyond 40 that is z in float64 too.
    log_odds = outputs.squeeze(1) if outputs.dim() == 2 else outputs
    return F.softplus(log_odds * (1 - 2 * y.to(outputs.dtype)), threshold=40)


def cross_entropy(outputs: Tensor, y: Tensor, *, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """Cross-entropy of several classes, in nats per row.

    As ``torch.nn.functional.cross_entropy`` with ``reduction="none"``, but members may differ in
    their label smoothing.

    Args:
        outputs:
            One logit per class ``(n, classes)``.
        y:
            The classes ``(n,)``.
        label_smoothing:
            How much of the target is spread evenly over all classes, in ``[0, 1]``.

    Returns:
        ``(n,)``.

    Example:
        >>> import torch
        >>> from optuna_ext.fused import cross_entropy
        >>> cross_entropy(torch.zeros(1, 10), torch.tensor([3]), label_smoothing=0.1)
        tensor([2.3026])
    """
    logs = F.log_softmax(outputs, 1)
    own = -logs.gather(1, y[:, None])[:, 0]
    if isinstance(label_smoothing, Tensor):
        return torch.lerp(own, -logs.mean(1), label_smoothing.to(own))
    return torch.lerp(own, -logs.mean(1), label_smoothing) if label_smoothing else own


def mean_loss(
    loss: Callable[..., Tensor],
    outputs: Tensor,
    y: Tensor,
    live: Tensor | None,
    hyper: Mapping[str, Tensor],
) -> Tensor:
    """The mean of a loss over those rows of one member that are live, or all.

    Raises:
        ValueError: If some are not, and the loss is a mean itself.
    """
    losses = loss(outputs, y, **hyper)
    if losses.dim() == 0:
        if live is not None:
            raise ValueError(
                "loss must give one number per row, because batch sizes differ, but it gives "
                "a scalar."
            )
        return losses
    if live is None:
        # Not mean(), whose gradient would lie in memory otherwise than that of the members; and
        # the sum comes last, for a compiler that goes once through all rows.
        return (losses / losses.numel()).sum()
    return (torch.where(live, losses, 0) / live.sum().clamp(1)).sum()


def means_of(
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    outputs: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    slots: int,
) -> dict[str, Tensor]:
    """Return the means of metrics over all rows, by name, of each member ``(slots,)``.

    Args:
        metrics:
            ``metric(outputs, y)`` of one member, one number per row.
        outputs:
            Those of all members, for some inputs.
        x:
            The inputs ``(n, ...)``.
        y:
            The targets ``(n, ...)``.
        slots:
            How many members there is room for.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    totals = {name: x.new_zeros(slots, dtype=wide) for name in metrics}
    at_once = rows_at_once(slots)
    for rows, targets in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True):
        found = outputs(rows)
        for name, metric in metrics.items():
            values = vmap(metric, in_dims=(0, None))(found, targets)
            totals[name] += values.flatten(1).sum(1, dtype=wide)
    return {name: total / len(x) for name, total in totals.items()}
