"""Sobol and Halton rows that stay the same when a study gets longer or wider.

scipy's scrambles depend on the number of columns. Here the columns come in tiers, 0..7, 8..15,
16..31, 32..63 and so on, and a tier's columns are those of an engine that ends where the tier
ends. Scipy scrambles each column on its own, so columns of different engines make as good a
scrambled sequence as columns of one.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import threading
from typing import Any
from typing import get_args
from typing import Literal
from typing import TYPE_CHECKING

import numpy as np

from optuna_ext._checks import check_int
from optuna_ext.points._checks import generator
from optuna_ext.points._checks import MAX_ROWS


if TYPE_CHECKING:
    from numpy.typing import NDArray


SequenceKind = Literal["sobol", "halton"]

# Sobol: the direction numbers that scipy has (Joe and Kuo, 2008). Halton: its digit permutations
# take memory with the square of the columns, and its columns repeat each other long before.
MAX_COLUMNS: dict[SequenceKind, int] = {"sobol": 21201, "halton": 1024}

_FIRST_TIER = 8  # columns
_FIRST_BLOCK = 16  # rows; small, so that the first trial of a study does not wait
_LARGEST_BLOCK = 1024
_CACHED_BLOCKS = 64
_SKIPPED_AT_ONCE = 2**16  # rows


class PointSequence:
    """Random access to the coordinates of a Sobol or Halton sequence.

    Row ``i`` is the same whatever was asked before, in whatever order, and equal to row ``i`` of
    :func:`~optuna_ext.points.sobol` or :func:`~optuna_ext.points.halton` with the same seed. Rows
    are made in blocks and kept for a while, which makes a coordinate cost O(1), amortized, where
    rows are asked for about in order. Safe to share among threads. A pickled or copied sequence
    starts with nothing kept.

    Args:
        kind: ``"sobol"`` or ``"halton"``.
        seed: Seed of the scramble, a non-negative integer of any size.
        scramble: Whether to scramble. The unscrambled sequences start at the cube's corner.

    Raises:
        ValueError: If ``kind`` is not one of the two, or ``seed`` is negative.
        TypeError: If ``seed`` is not an integer.

    Example:
        >>> sequence = PointSequence("halton", seed=0, scramble=False)
        >>> sequence.value(3, column=0)
        0.75
        >>> sequence.row(2, d=2)
        array([0.25      , 0.66666667])
    """

    def __init__(self, kind: SequenceKind, *, seed: int, scramble: bool = True) -> None:
        if kind not in get_args(SequenceKind):
            raise ValueError(f"`kind` must be one of {get_args(SequenceKind)}, but got {kind!r}.")
        self.kind = kind
        self.seed = check_int("seed", seed)
        self.scramble = scramble
        self._tiers: dict[int, _Tier] = {}
        self._blocks: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._lock = threading.Lock()

    def value(self, index: int, column: int) -> float:
        """Return one coordinate.

        Args:
            index: Row, in ``0 <= index < 2**30``.
            column: Column, in ``0 <= column < 21201`` (Sobol) or ``1024`` (Halton).

        Returns:
            Coordinate in ``[0, 1)``.

        Raises:
            ValueError: If the row or column is out of range.
        """
        if not (0 <= index < MAX_ROWS and 0 <= column < MAX_COLUMNS[self.kind]):
            check_int("index", index, high=MAX_ROWS - 1)
            check_int("column", column, high=MAX_COLUMNS[self.kind] - 1)
        tier = _tier_of(column)
        size = min(1 << (max(index, _FIRST_BLOCK).bit_length() - 1), _block_limit(tier))
        start = index - index % size
        # Reading a dict needs no lock; making a block does.
        block = self._blocks.get((tier, start))
        if block is None:
            block = self._make_block(tier, start, size)
        return block.item(index - start, column - _first_column(tier))

    def row(self, index: int, d: int) -> NDArray[np.float64]:
        """Return the first ``d`` coordinates of one row.

        Args:
            index: Row, in ``0 <= index < 2**30``.
            d: Number of columns, ``0 <= d <= 21201`` (Sobol) or ``1024`` (Halton).

        Returns:
            Array of shape ``(d,)``, float64, values in ``[0, 1)``.

        Raises:
            ValueError: If the row or the number of columns is out of range.
        """
        return np.array([self.value(index, column) for column in range(check_int("d", d))])

    def _make_block(self, tier: int, start: int, size: int) -> NDArray[np.float64]:
        with self._lock:
            block = self._blocks.get((tier, start))
            if block is None:
                # Out of the dict meanwhile: Ctrl-C may leave an engine between two rows.
                columns = self._tiers.pop(tier, None)
                columns = columns or _Tier(self.kind, tier, self.seed, self.scramble)
                block = columns.rows(start, size)
                self._tiers[tier] = columns
                if len(self._blocks) >= _CACHED_BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
                self._blocks[tier, start] = block
        return block

    def __reduce__(self) -> tuple[Callable[[], PointSequence], tuple[()]]:
        create = functools.partial(
            PointSequence, self.kind, seed=self.seed, scramble=self.scramble
        )
        return create, ()


def sequence_rows(
    kind: SequenceKind, n: int, d: int, *, seed: int, start: int, scramble: bool
) -> NDArray[np.float64]:
    """Return rows ``start .. start + n - 1`` as an array of shape ``(n, d)``."""
    start = check_int("start", start, high=MAX_ROWS)
    n = check_int("n", n, high=MAX_ROWS - start)
    d = check_int("d", d, high=MAX_COLUMNS[kind])
    check_int("seed", seed)
    rows = np.empty((n, d))
    if rows.size:
        for tier in range(_tier_of(d - 1) + 1):
            columns = rows[:, _first_column(tier) : _first_column(tier + 1)]
            columns[:] = _Tier(kind, tier, seed, scramble).rows(start, n)[:, : columns.shape[1]]
    return rows


class _Tier:
    """One scipy engine, of which only the columns of one tier are used."""

    def __init__(self, kind: SequenceKind, tier: int, seed: int, scramble: bool) -> None:
        from scipy.stats import qmc

        engines: dict[SequenceKind, Any] = {"sobol": qmc.Sobol, "halton": qmc.Halton}
        d = min(_first_column(tier + 1), MAX_COLUMNS[kind])
        self._engine = engines[kind](d, scramble=scramble, rng=generator(seed, kind, tier))
        self._first_column = _first_column(tier)
        self._next = 0

    def rows(self, start: int, n: int) -> NDArray[np.float64]:
        """Return ``n >= 1`` rows from ``start`` on; cheap where the last call ended."""
        if start < self._next:
            self._engine.reset()
            self._next = 0
        while self._next < start:  # in pieces: a Halton engine makes the rows that it skips
            skipped = min(start - self._next, _SKIPPED_AT_ONCE)
            self._engine.fast_forward(skipped)
            self._next += skipped
        self._next += n
        # A Sobol engine warns if its first draw is not a power of 2. One row is.
        first = self._engine.random(1)
        rows = np.concatenate([first, self._engine.random(n - 1)]) if n > 1 else first
        return rows[:, self._first_column :].copy()


def _tier_of(column: int) -> int:
    return (column // _FIRST_TIER).bit_length()


def _first_column(tier: int) -> int:
    return _FIRST_TIER << (tier - 1) if tier else 0


def _block_limit(tier: int) -> int:
    """Return how many rows a block has at most: the fewer, the more columns the tier has."""
    return max(_LARGEST_BLOCK >> tier, _FIRST_BLOCK)
