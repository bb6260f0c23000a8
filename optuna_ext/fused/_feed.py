from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os

import torch
from torch import Tensor


_ROWS_AT_ONCE = 2048  # evaluated at once by one member, and by all
_MEMBER_ROWS_AT_ONCE = 2**18
_THREADS = 8  # that draw orders


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one step of all members.

    Args:
        inputs:
            All inputs ``(n, ...)``.
        targets:
            All targets ``(n, ...)``.
        rows:
            Which of them: ``(slots, rows)``, ``(rows,)`` for all members, or ``None`` for all.
        live:
            ``(slots, rows)``, false where rows only pad a batch that is smaller than others.
        idle:
            Slots whose members have already made all their steps of this pass.
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor | None = None
    live: Tensor | None = None
    idle: tuple[int, ...] = ()

    @property
    def shared(self) -> bool:
        """Whether all members get the same rows."""
        return self.rows is None or self.rows.dim() == 1

    @property
    def ended(self) -> Tensor:
        """Where no row is left ``(slots,)``: in idle slots, and in any that are free."""
        if self.live is None:
            raise ValueError("live must say which rows are left, but it is None.")
        return ~self.live[:, 0]

    @property
    def x(self) -> Tensor:
        """The inputs ``(slots, rows, ...)``, or ``(rows, ...)`` if they are shared."""
        return self.inputs if self.rows is None else take(self.inputs, self.rows)

    @property
    def y(self) -> Tensor:
        """The targets, likewise."""
        return self.targets if self.rows is None else take(self.targets, self.rows)

    @property
    def n_rows(self) -> int:
        """How many rows each member gets, with those that only pad."""
        return len(self.inputs) if self.rows is None else self.rows.shape[-1]

    def of(self, slot: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of one member, without the rows that only pad."""
        if self.rows is None:
            return self.inputs, self.targets
        rows = self.rows if self.shared else self.rows[slot]
        if self.live is not None:
            rows = rows[self.live[slot]]
        return take(self.inputs, rows), take(self.targets, rows)


def take(tensor: Tensor, rows: Tensor, dim: int = 0) -> Tensor:
    """Take rows, which lie along a dimension, in the shape of their numbers."""
    # Faster than tensor[rows].
    shape = *tensor.shape[:dim], *rows.shape, *tensor.shape[dim + 1 :]
    return tensor.index_select(dim, rows.flatten()).view(shape)


def batches(
    x: Tensor,
    y: Tensor,
    *,
    sizes: Sequence[int | None],
    generators: Sequence[torch.Generator | None],
    order: Tensor | None,
) -> Iterator[Batch]:
    """Split the rows for one pass of each member.

    Args:
        x:
            The inputs.
        y:
            The targets.
        sizes:
            The batch sizes of the slots; ``None`` means all rows.
        generators:
            Where the order of each member comes from; ``None`` in free slots.
        order:
            Rows for all members, instead.
    """
    n = len(x)
    taken = [slot for slot, generator in enumerate(generators) if generator is not None]
    steps = [min(n, size or n) for size in sizes]
    distinct = {steps[slot] for slot in taken}
    if distinct == {n}:  # in the order given, and without a draw, as nothing depends on it
        yield Batch(inputs=x, targets=y, rows=order)
        return
    if order is None:
        shuffled = [None if steps[i] == n else own for i, own in enumerate(generators)]
        rows = _orders(n, shuffled, x.device)
    else:
        rows = order
    if len(distinct) == 1:
        for part in torch.split(rows, distinct.pop(), dim=-1):
            yield Batch(inputs=x, targets=y, rows=part)
    else:
        yield from _padded(x, y, rows.expand(len(sizes), n), steps, taken)


def _orders(n: int, generators: Sequence[torch.Generator | None], device: torch.device) -> Tensor:
    """Draw an order of the rows per generator: ``(generators, n)``; as they are for ``None``.

    They are drawn on the CPU, which gives the same ones on every device. A GPU would need some 40
    us for each, more than for the steps; here threads, which wait for nobody, share the work.
    """
    orders = torch.arange(n, dtype=torch.int32).repeat(len(generators), 1)

    def draw(slots: range) -> None:
        for slot in slots:
            if generators[slot] is not None:
                torch.randperm(n, generator=generators[slot], out=orders[slot])

    parts = 1 if device.type == "cpu" else min(_THREADS, os.cpu_count() or 1)
    slots = [range(i, len(generators), parts) for i in range(parts)]
    if parts == 1:
        draw(*slots)
    else:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(draw, slots))
    return orders.to(device)


def _padded(
    x: Tensor, y: Tensor, rows: Tensor, sizes: Sequence[int], taken: Sequence[int]
) -> Iterator[Batch]:
    n = len(x)
    widest = max(sizes[slot] for slot in taken)
    size = torch.tensor(sizes, device=x.device)[:, None]
    offsets = torch.arange(widest, device=x.device)
    for step in range(max(-(-n // sizes[slot]) for slot in taken)):
        left = (n - step * size).clamp(0).minimum(size)  # the rows of this batch, per member
        # Padding repeats rows of the member's own batch, so that it brings in nothing new.
        columns = step * size + offsets % left.clamp(1)
        yield Batch(
            inputs=x,
            targets=y,
            rows=rows.gather(1, columns.clamp(max=n - 1)),
            live=offsets < left,
            idle=tuple(slot for slot in taken if step * sizes[slot] >= n),
        )


def rows_at_once(slots: int) -> int:
    """Return how many rows so many members evaluate at once."""
    return max(1, min(_ROWS_AT_ONCE, _MEMBER_ROWS_AT_ONCE // slots))
