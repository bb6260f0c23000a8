from __future__ import annotations

from typing import Any
from typing import TYPE_CHECKING
import warnings

from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution

from optuna_ext.space import from_unit
from optuna_ext.space import n_values
from optuna_ext.space import to_unit


if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution


class Levels(CategoricalDistribution):
    """Values of a parameter in an order: the neighbors of a value are those beside it."""

    def nearest(self, value: Any) -> Any:
        """Return the level nearest to ``value``, or ``value`` itself if it is no number."""
        if value in self.choices or not _is_number(value):
            return value
        numbers = [level for level in self.choices if _is_number(level)]
        return min(numbers, key=lambda level: abs(level - value), default=value)


def check_levels(levels: Mapping[str, Sequence[Any]] | None) -> dict[str, Levels]:
    """Return the levels by parameter, numbers sorted, or say in one sentence what is wrong."""
    checked = {}
    for name, values in (levels or {}).items():
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise TypeError(f"`levels[{name!r}]` must be a list of values, but got {values!r}.")
        values = list(values)
        if len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(
                f"`levels[{name!r}]` must be two or more different values, but got {values}."
            )
        if all(map(_is_number, values)) and values != sorted(values):
            warnings.warn(
                f"`levels[{name!r}]` is not in increasing order, got {values}: it was sorted.",
                stacklevel=3,
            )
            values.sort()
        checked[name] = Levels(values)
    return checked


def fit_levels(name: str, levels: Levels, distribution: BaseDistribution) -> Levels:
    """Return the levels as values of a distribution.

    Raises:
        ValueError: If a level is not in the distribution.
    """
    values = []
    for level in levels.choices:
        try:
            values.append(from_unit(distribution, to_unit(distribution, level)))
        except (TypeError, ValueError):
            raise ValueError(
                f"`levels[{name!r}]` must be values of {distribution}, but {level!r} is not."
            ) from None
    # Through the unit interval floats would come back rounded.
    if isinstance(distribution, FloatDistribution):
        values = [float(level) for level in levels.choices]  # type: ignore[arg-type]
    return Levels(values)


def derive_levels(distribution: BaseDistribution, n_levels: int) -> BaseDistribution:
    """Return ``n_levels`` evenly spaced values from end to end, on the distribution's scale.

    Choices, and numbers with no more values than that, are returned as they are.
    """
    count = n_values(distribution)
    if not isinstance(distribution, FloatDistribution | IntDistribution) or (
        count is not None and count <= n_levels
    ):
        return distribution
    between = [from_unit(distribution, k / (n_levels - 1)) for k in range(1, n_levels - 1)]
    # Rounding may make two values equal where an integer's scale is logarithmic.
    return Levels(list(dict.fromkeys([distribution.low, *between, distribution.high])))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
