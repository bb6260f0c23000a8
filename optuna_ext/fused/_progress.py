from __future__ import annotations

import time
from types import TracebackType
from typing import Any


_REFRESH = 0.5  # seconds
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """A bar with trials and steps per second, as Optuna shows one.

    Args:
        total: How many trials there will be.
        enabled: Whether to show it.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._bar: Any = None
        self._started = time.perf_counter()
        if enabled:
            from tqdm.auto import tqdm  # comes with Optuna, which shows its bars with it

            self._bar = tqdm(total=total, bar_format=_FORMAT, mininterval=_REFRESH, miniters=0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, trials: int, model_steps: int) -> None:
        """Show how many trials have ended and how many steps were taken."""
        if self._bar is None:
            return
        seconds = max(time.perf_counter() - self._started, 1e-9)
        speed = f"{trials / seconds:.3g} trials/s, {model_steps / seconds:,.0f} model steps/s"
        self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(trials - self._bar.n)
