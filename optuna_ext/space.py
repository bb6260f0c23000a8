"""Parameters of a search space as rows of the unit cube, and back.

This is the only place that knows about log scales, steps, integers and choices. Everything else
in the package works on rows ``u`` in ``[0, 1)``.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution


if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution

_LAST = math.nextafter(1.0, 0.0)  # the largest u
_EXACT = 2**53  # integers up to here are exact as the doubles in which Optuna stores parameters
_FLOAT_BINS = 2**50  # up to here a bin's center survives the rounding of `center * n`
_LOG_HIGH = 2**44  # up to here every integer of a log range gets some of the 2**53 values of u


def from_unit(distribution: BaseDistribution, u: float) -> Any:
    """Return the parameter value at a coordinate of the unit interval.

    Non-decreasing in ``u`` (for choices: in the choice's index). Integers, steps and choices
    share ``[0, 1)`` in half-open bins of equal width, so that points which are balanced on the
    interval are balanced over the values. The bins of an integer on a log scale are equal to
    Optuna's: the value ``v`` owns ``[log(v - 1/2), log(v + 1/2))``.

    Args:
        distribution: A float, int or categorical distribution of Optuna.
        u: Coordinate in ``[0, 1)``.

    Returns:
        A Python ``float``, ``int`` or the choice itself, always inside the distribution.

    Raises:
        ValueError: If ``u`` is not in ``[0, 1)``, or if the distribution has a range that cannot
            be resolved (see :class:`UnitSpace`).
        TypeError: If the distribution is of an unknown class.

    Example:
        >>> from optuna.distributions import IntDistribution
        >>> from_unit(IntDistribution(1, 4), 0.5)
        3
    """
    u = float(u)
    if not 0.0 <= u < 1.0:
        raise ValueError(f"`u` must be in [0, 1), but got {u}.")
    if isinstance(distribution, FloatDistribution):
        if distribution.step is not None:
            return _float_on_grid(distribution, _bin(u, _n_steps(distribution)))
        low, high = distribution.low, distribution.high
        if distribution.log:
            log_low, log_high = math.log(low), math.log(high)
            if log_high == math.inf:
                _check_finite(distribution)
            return min(max(math.exp(log_low + u * (log_high - log_low)), low), high)
        span = high - low
        if span < math.inf:
            return min(low + u * span, high)
        _check_finite(distribution)
        return low * (1.0 - u) + high * u  # the span overflows, this does not
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            log_low, log_high = _log_ends(distribution)
            value = math.floor(math.exp(log_low + u * (log_high - log_low)) + 0.5)
            return min(max(value, distribution.low), distribution.high)
        return distribution.low + _bin(u, _n_ints(distribution)) * distribution.step
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        return choices[_bin(u, len(choices))]
    raise _unknown(distribution)


def to_unit(distribution: BaseDistribution, value: Any) -> float:
    """Return the coordinate of a parameter value, the inverse of :func:`from_unit`.

    Args:
        distribution: A float, int or categorical distribution of Optuna.
        value: A value of the distribution. Where choices are equal to each other (``True`` and
            ``1``), Optuna and this function take the first.

    Returns:
        Coordinate in ``[0, 1)``; the bin's center for integers, steps and choices, so that
        ``from_unit(distribution, to_unit(distribution, value)) == value``.

    Raises:
        ValueError: If the value is not in the distribution, or if the distribution has a range
            that cannot be resolved (see :class:`UnitSpace`).
        TypeError: If the distribution is of an unknown class.

    Example:
        >>> from optuna.distributions import IntDistribution
        >>> to_unit(IntDistribution(1, 4), 3)
        0.625
    """
    if isinstance(distribution, FloatDistribution):
        return _float_to_unit(distribution, _within(distribution, value))
    if isinstance(distribution, IntDistribution):
        return _int_to_unit(distribution, _within(distribution, value))
    if isinstance(distribution, CategoricalDistribution):
        index = int(distribution.to_internal_repr(value))
        return _center(index, len(distribution.choices))
    raise _unknown(distribution)


def n_values(distribution: BaseDistribution) -> int | None:
    """Return how many values a distribution has, ``None`` if it is continuous.

    Args:
        distribution: A float, int or categorical distribution of Optuna.

    Returns:
        The number of different values, 1 for a single-valued distribution of any class.

    Raises:
        ValueError: If the distribution has a range that cannot be resolved.
        TypeError: If the distribution is of an unknown class.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> n_values(FloatDistribution(0.0, 1.0, step=0.25))
        5
    """
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            _log_ends(distribution)
        return _n_ints(distribution)
    if isinstance(distribution, FloatDistribution):
        if distribution.step is not None:
            return _n_steps(distribution)
        _check_finite(distribution)
        return 1 if distribution.single() else None
    raise _unknown(distribution)


class UnitSpace:
    """The rows of the unit cube that stand for the parameters of a search space.

    Every parameter has one column, in the order of the mapping; parameters with a single value
    take none.

    Args:
        distributions: The search space, parameter name to Optuna distribution.

    Attributes:
        distributions: A copy of the search space.
        names: Names of the parameters with a column, in column order.
        n_dims: Number of columns ``d``.
        n_values: For each column the number of different values, ``None`` if continuous.

    Raises:
        ValueError: If a range cannot be resolved: a float end that is infinite, an integer end
            beyond ``2**53`` (Optuna stores integers as doubles), a log scale of integers beyond
            ``2**44``, more than ``2**53`` integers or ``2**50`` float steps. A coordinate has
            only 53 bits, and beyond these limits some values could not be reached.
        TypeError: If a distribution is of an unknown class.

    Example:
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> space = UnitSpace(
        ...     {
        ...         "dropout": FloatDistribution(0.0, 0.5),
        ...         "optimizer": CategoricalDistribution(["sgd", "adam"]),
        ...     }
        ... )
        >>> space.to_params([0.25, 0.75])
        {'dropout': 0.125, 'optimizer': 'adam'}
        >>> space.to_row({"dropout": 0.125, "optimizer": "adam"})
        array([0.25, 0.75])
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        if not isinstance(distributions, Mapping):
            raise TypeError(
                f"A search space must map names to distributions, but got {distributions!r}."
            )
        self.distributions = dict(distributions)
        columns: dict[str, int | None] = {}
        self._constants: dict[str, Any] = {}
        for name, distribution in self.distributions.items():
            try:
                count = n_values(distribution)
            except (TypeError, ValueError) as error:
                raise _named(name, error) from error
            if distribution.single():
                self._constants[name] = from_unit(distribution, 0.0)
            else:
                columns[name] = count
        self.names = tuple(columns)
        self.n_values = tuple(columns.values())
        self.n_dims = len(columns)

    def __len__(self) -> int:
        return self.n_dims

    def to_params(self, row: Sequence[float] | NDArray[np.float64]) -> dict[str, Any]:
        """Return the parameters at one row.

        Args:
            row: ``d`` coordinates in ``[0, 1)``.

        Returns:
            A new dict with every parameter of the space, in its order, also the single-valued.

        Raises:
            ValueError: If the row has not ``d`` coordinates, or one is not in ``[0, 1)``.
        """
        if len(row) != self.n_dims:
            raise ValueError(
                f"`row` must have {self.n_dims} coordinates, one for each of {self.names}, "
                f"but got {len(row)}."
            )
        coordinates = iter(row)
        params = {}
        for name, distribution in self.distributions.items():
            if name in self._constants:
                params[name] = self._constants[name]
                continue
            try:
                params[name] = from_unit(distribution, next(coordinates))
            except ValueError as error:
                raise _named(name, error) from error
        return params

    def to_row(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        """Return the row of the given parameters.

        Args:
            params: A value for every parameter that has a column; others are ignored.

        Returns:
            Array of shape ``(d,)``, float64, values in ``[0, 1)``.

        Raises:
            ValueError: If a parameter is missing or its value is not in its distribution.
        """
        row = np.empty(self.n_dims)
        for column, name in enumerate(self.names):
            if name not in params:
                raise ValueError(f"`params` must have a value for `{name}`, but got {params}.")
            try:
                row[column] = to_unit(self.distributions[name], params[name])
            except ValueError as error:
                raise _named(name, error) from error
        return row


def _bin(u: float, n: int) -> int:
    """Return the number of the bin of ``[0, 1)`` that ``u`` is in, of ``n`` equal ones."""
    if n <= _FLOAT_BINS:
        return min(int(u * n), n - 1)  # u * n can round up to n
    numerator, denominator = u.as_integer_ratio()
    return numerator * n // denominator


def _center(k: int, n: int) -> float:
    """Return the center of bin ``k`` of ``n``; for huge ``n`` the nearest double inside it."""
    u = (2 * k + 1) / (2 * n)
    return u if _bin(u, n) == k else math.nextafter(u, 0.0)


def _float_on_grid(distribution: FloatDistribution, k: int) -> float:
    return min(distribution.low + k * (distribution.step or 0.0), distribution.high)


def _n_steps(distribution: FloatDistribution) -> int:
    steps = (distribution.high - distribution.low) / (distribution.step or 1.0)
    if not steps < _FLOAT_BINS:
        raise ValueError(f"{distribution} must have at most 2**50 steps.")
    return round(steps) + 1


def _n_ints(distribution: IntDistribution) -> int:
    low, high = distribution.low, distribution.high
    n = (high - low) // distribution.step + 1
    if low < -_EXACT or high > _EXACT or n > _EXACT:
        raise ValueError(f"{distribution} must lie within -2**53..2**53 and have <= 2**53 values.")
    return n


def _log_ends(distribution: IntDistribution) -> tuple[float, float]:
    if distribution.high > _LOG_HIGH:
        raise ValueError(f"{distribution} must have `high` <= 2**44 on a log scale.")
    return math.log(distribution.low - 0.5), math.log(distribution.high + 0.5)


def _within(distribution: FloatDistribution | IntDistribution, value: Any) -> float:
    """Return a value as a number, if it is in the range of its distribution."""
    x = distribution.to_internal_repr(value)
    if not distribution.low <= x <= distribution.high:
        raise ValueError(f"{value!r} is not in {distribution}.")
    return x


def _float_to_unit(distribution: FloatDistribution, x: float) -> float:
    low, high = distribution.low, distribution.high
    if distribution.step is not None:
        k = round((x - low) / distribution.step)
        # The tolerance, in steps, is the one Optuna has for values typed by hand.
        off_grid = abs((x - low) / distribution.step - k) >= 1e-8
        if off_grid and x != _float_on_grid(distribution, k):
            raise ValueError(f"{x!r} is not in {distribution}.")
        return _center(k, _n_steps(distribution))
    if distribution.log:
        x, low, high = math.log(x), math.log(low), math.log(high)
    if high - low == math.inf:
        _check_finite(distribution)
        x, low, high = x / 2, low / 2, high / 2
    return min((x - low) / (high - low), _LAST) if low < high else 0.0


def _int_to_unit(distribution: IntDistribution, x: float) -> float:
    k, rest = divmod(x - distribution.low, distribution.step)
    if rest:
        raise ValueError(f"{x} is not in {distribution}.")
    if not distribution.log:
        return _center(int(k), _n_ints(distribution))
    log_low, log_high = _log_ends(distribution)
    center = (math.log(x - 0.5) + math.log(x + 0.5)) / 2
    return (center - log_low) / (log_high - log_low)


def _check_finite(distribution: FloatDistribution) -> None:
    if not (math.isfinite(distribution.low) and math.isfinite(distribution.high)):
        raise ValueError(f"{distribution} must have finite ends.")


def _unknown(distribution: object) -> TypeError:
    return TypeError(
        "A distribution must be a FloatDistribution, IntDistribution or CategoricalDistribution, "
        f"but got {distribution!r}."
    )


def _named(name: str, error: Exception) -> Exception:
    return type(error)(f"Parameter `{name}`: {error}")
