from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optuna_ext.fused._member import Member


class Population:
    """Networks of one signature, each in a slot, trained side by side as one program.

    Args:
        template:
            Any member: gives the architecture and the kind of optimizer. It is not admitted.
        slots:
            How many members there is room for.
        loss:
            ``loss(outputs, y, **hyper)`` of one member: one loss per row ``(n,)``, whose mean is
            minimized, or their mean, a scalar.
        device:
            Where to train.
        engine:
            ``"auto"`` times the others at the first epoch and takes the fastest; ``"linear"``,
            ``"vmap"``, ``"grad"`` or ``"loop"``.
        amp:
            Whether the networks compute in bfloat16 where torch holds that to be safe.
        compile:
            Whether to ``torch.compile`` the step.
    """

    engine: str
    """The name of the engine in use; ``"auto"`` before the first epoch."""
    reason: str
    """A sentence that says why it is this engine."""
    slots: int

    def __init__(
        self,
        template: Member,
        *,
        slots: int,
        loss: Callable[..., Tensor],
        device: str | torch.device = "cpu",
        engine: str = "auto",
        amp: bool = False,
        compile: bool = False,
    ) -> None:
        raise NotImplementedError

    @property
    def taken(self) -> list[int]:
        """The slots that have a member, in increasing order."""
        raise NotImplementedError

    def admit(self, slot: int, member: Member) -> None:
        """Put a new member in a slot, with fresh optimizer state; who was there is forgotten."""

    def release(self, slot: int) -> None:
        """Free a slot."""

    def train_epoch(
        self, x: Tensor, y: Tensor, *, passes: int = 1, order: Tensor | None = None
    ) -> Tensor:
        """Go through the rows; return the mean loss of each member's steps ``(slots,)``.

        Each member goes through the rows in an order of its own, ``torch.randperm`` of a generator
        with its seed, or, if all rows make one batch, in the order given. NaN in free slots.

        ``order``: rows ``(n,)`` shared by all members, which is faster.
        """
        raise NotImplementedError

    def evaluate(
        self, x: Tensor, y: Tensor, metrics: Mapping[str, Callable[..., Tensor]]
    ) -> dict[str, Tensor]:
        """Means over all rows of ``metric(outputs, y)``, one number per row, in eval mode.

        Each ``(slots,)``, NaN in free slots.
        """
        raise NotImplementedError

    def set_hyperparameters(self, slot: int, **values: float) -> None:
        """Change ``lr``, ``momentum``, ``beta1``, ``beta2``, ``weight_decay`` or one of ``hyper``."""

    def copy(self, source: int, target: int) -> None:
        """Overwrite a member's weights, buffers and optimizer state by another's.

        Its hyperparameters, seed, and place in its schedule stay.
        """

    def compact(self, keep: Sequence[int]) -> None:
        """Keep only these slots, in this order; slot ``i`` is then the former ``keep[i]``."""

    def state_of(self, slot: int) -> dict[str, Any]:
        """Give what a checkpoint needs: state dicts ``model`` and ``optimizer`` as torch's own,
        ``epoch`` and ``generator``."""
        raise NotImplementedError

    def load(self, slot: int, state: Mapping[str, Any]) -> None:
        """Put a member back to what :meth:`state_of` gave; it must have been admitted."""

    def check(self, slots: Sequence[int], x: Tensor) -> None:
        """Compare the outputs of members with those of their own modules.

        Raises:
            ValueError: If one differs: then something that differs by member is neither a
                parameter nor a buffer.
        """

    def memory_per_member(self, x: Tensor, y: Tensor) -> int:
        """Predict the bytes that a member needs in training."""
        raise NotImplementedError
