"""Hyperparameters over steps: recorded, averaged, kept, drawn, and followed once more."""

from __future__ import annotations

import bisect
from typing import Any
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Mapping


class Schedule:
    """Hyperparameters over the steps of a training, each value valid until the next one.

    Args:
        points:
            The values that hold from a step on; steps count from 1.
        last:
            The last step of the training; by default that of the last point.
    """

    def __init__(
        self, points: Mapping[int, Mapping[str, Any]] | None = None, *, last: int | None = None
    ) -> None:
        self._points = {step: dict(values) for step, values in sorted((points or {}).items())}
        self._steps = list(self._points)
        self.last = last if last is not None else max(self._steps, default=0)

    def at(self, step: int) -> dict[str, Any]:
        """Return the values with which a step is trained."""
        index = bisect.bisect_right(self._steps, step) - 1
        return dict(self._points[self._steps[index]])

    def to_dict(self) -> dict[str, Any]:
        """Return points and length."""
        return {"points": {s: dict(v) for s, v in self._points.items()}, "last": self.last}
