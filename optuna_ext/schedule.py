"""Hyperparameters over steps: recorded, averaged, kept, drawn, and followed once more."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import itertools
import json
import math
import statistics
from typing import Any
from typing import TYPE_CHECKING

from optuna_ext._checks import check_int
from optuna_ext._driver import Driver


if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from optuna_ext._driver import Optimizer

_SPREAD = 20  # beyond which an axis is logarithmic


class Schedule:
    """Hyperparameters over the steps of a training, each value valid until the next one.

    A schedule is what ``optuna_ext.lineage.schedule`` tells of a trial, or what a tuner records
    while it trains. It changes at few steps or at all of them: only changes are stored.

    Args:
        points:
            The values that hold from a step on, by that step; steps count from 1.
        last:
            The last step of the training; by default that of the last point.

    Raises:
        ValueError: If a step is below 1, or a point beyond ``last``.

    Example:
        >>> schedule = Schedule({1: {"lr": 0.1}, 11: {"lr": 0.01}}, last=20)
        >>> schedule.at(10), schedule.at(11)
        ({'lr': 0.1}, {'lr': 0.01})
        >>> schedule.record(21, lr=0.001)
        >>> [(steps, values["lr"]) for steps, values in schedule]
        [(range(1, 11), 0.1), (range(11, 21), 0.01), (range(21, 22), 0.001)]
    """

    def __init__(
        self, points: Mapping[int, Mapping[str, Any]] | None = None, *, last: int | None = None
    ) -> None:
        self._firsts: list[int] = []
        self._values: list[dict[str, Any]] = []
        self._last = 0
        for step, values in sorted((points or {}).items()):
            self.record(step, **values)
        if last is not None:
            self._last = check_int("last", last, low=self._last)

    @property
    def last(self) -> int:
        """The last step; 0 of an empty schedule."""
        return self._last

    @property
    def names(self) -> list[str]:
        """The hyperparameters, in order of first appearance."""
        return [*dict.fromkeys(name for values in self._values for name in values)]

    def record(self, step: int, /, **values: Any) -> None:
        """Add the values that hold from a step on; equal to those before, they take no space.

        Args:
            step:
                The first step trained with these values, beyond all steps recorded before.
            **values:
                All hyperparameters, by name.

        Raises:
            ValueError: If ``step`` is not beyond :attr:`last`.
        """
        self._last = check_int("step", step, low=self._last + 1)
        if not self._values or values != self._values[-1]:
            self._firsts.append(step)
            self._values.append(values)

    def at(self, step: int) -> dict[str, Any]:
        """Return the values with which a step is trained.

        Args:
            step:
                ``first..last``.

        Raises:
            ValueError: If the schedule does not hold that step.
        """
        first = self._firsts[0] if self._firsts else 1
        if not first <= step <= self._last:
            raise ValueError(f"`step` must be in {first}..{self._last}, but got {step}.")
        return dict(self._values[bisect.bisect_right(self._firsts, step) - 1])

    def __iter__(self) -> Iterator[tuple[range, dict[str, Any]]]:
        """Yield ``(steps, values)``, one pair per change; ``steps`` is a ``range``."""
        ends = [*self._firsts, self._last + 1][1:]
        for first, end, values in zip(self._firsts, ends, self._values, strict=True):
            yield range(first, end), dict(values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"Schedule({dict(zip(self._firsts, self._values, strict=True))}, last={self.last})"

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as ``{"points": {step: values}, "last": step}``."""
        points = zip(self._firsts, self._values, strict=True)
        return {"points": {first: dict(values) for first, values in points}, "last": self._last}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schedule:
        """Return the schedule of which this is the dict."""
        points = {int(step): point for step, point in values["points"].items()}
        return cls(points, last=values["last"])

    def to_json(self) -> str:
        """Return the schedule as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Return the schedule of which this is the JSON."""
        return cls.from_dict(json.loads(text))

    def to_csv(self) -> str:
        """Return one line per change: first step, last step, and a column per hyperparameter."""
        file = io.StringIO()
        writer = csv.DictWriter(file, ["first", "last", *self.names], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows())
        return file.getvalue()

    def to_dataframe(self) -> pd.DataFrame:
        """Return what :meth:`to_csv` does as a data frame of pandas."""
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=["first", "last", *self.names])

    def _rows(self) -> list[dict[str, Any]]:
        return [{"first": steps[0], "last": steps[-1], **values} for steps, values in self]

    @classmethod
    def mean(cls, schedules: Iterable[Schedule], *, geometric: Sequence[str] = ()) -> Schedule:
        """Return the mean of several schedules, at every step that all of them hold.

        Args:
            schedules:
                At least one, all with the same hyperparameters.
            geometric:
                Names of those whose geometric mean is taken, which suits what is searched on a
                logarithmic scale, such as learning rates.

        Returns:
            A schedule whose integers are rounded and whose other numbers are floats. What is no
            number must be equal everywhere.

        Raises:
            ValueError: If there is no schedule, no common step, or something without a mean.

        Example:
            >>> Schedule.mean([Schedule({1: {"lr": 0.1}}), Schedule({1: {"lr": 0.3}})]).at(1)
            {'lr': 0.2}
        """
        parts = list(schedules)
        last = min((part.last for part in parts), default=0)
        first = max((part._firsts[0] for part in parts if part._firsts), default=1)
        if last < first:
            raise ValueError("`schedules` must be at least one, with a step that all hold.")
        changes = {first, *(step for part in parts for step in part._firsts)}
        points = {
            step: _mean([part.at(step) for part in parts], geometric)
            for step in changes
            if first <= step <= last
        }
        return cls(points, last=last)

    def thinned(self, n: int) -> Schedule:
        """Return this schedule with at most ``n`` of its changes.

        They divide the way that steps and values go into equal parts: many are where much
        happens, few where little does. A number that is 20 times another one counts by its
        logarithm.

        Args:
            n:
                At least 2: the first and the last change stay.

        Raises:
            ValueError: If ``n`` is below 2.

        Example:
            >>> schedule = Schedule({step: {"lr": 1 / step} for step in range(1, 1001)})
            >>> [steps.start for steps, _ in schedule.thinned(6)]
            [1, 15, 115, 352, 661, 1000]
        """
        if len(self._firsts) <= check_int("n", n, low=2):
            return self.from_dict(self.to_dict())
        parts = [int((n - 1) * share) for share in self._shares()]
        kept = [i for i, part in enumerate(parts) if i == 0 or part > parts[i - 1]]
        points = {self._firsts[i]: self._values[i] for i in kept}
        return Schedule(points, last=self._last)

    def _shares(self) -> list[float]:
        """Which share of the way of steps and values lies before each change, from 0 to 1."""
        ways = [[float(first - self._firsts[0]) for first in self._firsts]]
        ways += [_way([values.get(name) for values in self._values]) for name in self.names]
        ways = [way for way in ways if 0 < way[-1] < math.inf]
        shares = [[gone / way[-1] for gone in way] for way in ways]
        return [math.fsum(at) / len(at) for at in zip(*shares, strict=True)]

    def drive(
        self,
        optimizer: Optimizer,
        *,
        names: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> Driver:
        """Let a torch optimizer follow the schedule.

        The options of its parameter groups, learning rate, momentum, weight decay and any other
        number, are set at once for the next step, and again by every ``.step()`` of what is
        returned, which is used like a learning rate scheduler: once per step of the schedule,
        after it has been trained. Beyond the last step the last values stay.

        Args:
            optimizer:
                Any torch optimizer. Hyperparameters that are no option of it are left to you.
            names:
                Which option a hyperparameter of another name is: ``{"learning_rate": "lr"}``.
                ``beta1`` and ``beta2`` are known to be the two of ``betas``.
            step:
                The step after which the training stands.

        Raises:
            ValueError: If no hyperparameter is an option of the optimizer.

        Example:
            .. code-block:: python

                driver = schedule.drive(optimizer)
                for step in range(1, schedule.last + 1):
                    train_one_epoch(model, optimizer)
                    driver.step()
        """
        return Driver(self, optimizer, names=names or {}, step=step)

    def plot(self) -> go.Figure:
        """Draw every numeric hyperparameter over the steps, in a figure of plotly.

        An axis is logarithmic where a value is 20 times another one.

        Raises:
            ImportError: If plotly is not installed.
        """
        try:
            from plotly.subplots import make_subplots
        except ImportError as error:
            raise ImportError(
                "drawing a schedule needs plotly: pip install 'optuna-ext[studies]'"
            ) from error
        columns = {name: self._steps_and_values(name) for name in self.names}
        drawn = {name: column for name, column in columns.items() if column[1]}
        figure = make_subplots(rows=max(1, len(drawn)), cols=1, shared_xaxes=True)
        for row, (name, (steps, values)) in enumerate(drawn.items(), start=1):
            line = {"x": steps, "y": values, "name": name, "mode": "lines", "line_shape": "hv"}
            figure.add_scatter(**line, row=row, col=1)
            kind = "log" if _is_wide(values) else "linear"
            axis = {"title_text": name, "type": kind, "exponentformat": "power"}
            figure.update_yaxes(**axis, row=row, col=1)
        figure.update_xaxes(title_text="step", row=max(1, len(drawn)), col=1)
        return figure.update_layout(title_text="Schedule", showlegend=False)

    def _steps_and_values(self, name: str) -> tuple[list[int], list[float]]:
        """Where a number begins to hold, and once more where it ends to."""
        parts = [(steps, values[name]) for steps, values in self if name in values]
        if not all(_is_number(value) for _, value in parts):
            return [], []
        ends = [(parts[-1][0].stop, parts[-1][1])]
        points = [(steps.start, value) for steps, value in parts] + ends
        return [step for step, _ in points], [value for _, value in points]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether numbers are looked at on a logarithmic scale."""
    return min(values) > 0 and max(values) >= _SPREAD * min(values)


def _way(values: Sequence[Any]) -> list[float]:
    """How far something has gone at each of its values."""
    if all(_is_number(value) for value in values):
        places = [math.log(v) for v in values] if _is_wide(values) else values
        steps = [abs(b - a) for a, b in itertools.pairwise(places)]
    else:
        steps = [float(a != b) for a, b in itertools.pairwise(values)]
    return list(itertools.accumulate(steps, initial=0.0))


def _mean(values: Sequence[Mapping[str, Any]], geometric: Sequence[str]) -> dict[str, Any]:
    if len({frozenset(each) for each in values}) > 1:
        raise ValueError("`schedules` must have the same hyperparameters at every step.")
    means: dict[str, Any] = {}
    for name in values[0]:
        numbers = [each[name] for each in values]
        if all(number == numbers[0] for number in numbers):
            means[name] = numbers[0]
        elif not all(_is_number(number) for number in numbers):
            raise ValueError(f"`schedules` must agree in {name!r}, of which there is no mean.")
        else:
            mean = statistics.geometric_mean if name in geometric else statistics.fmean
            is_int = all(isinstance(number, int) for number in numbers)
            means[name] = round(mean(numbers)) if is_int else mean(numbers)
    return means
