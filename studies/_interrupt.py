"""Ctrl-C and SIGTERM as an orderly end: once to stop, twice to leave at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import signal
from types import FrameType


class Interrupt:
    """Remembers the first signal, and raises ``KeyboardInterrupt`` where that does no harm.

    Args:
        insist: Whether a second signal raises ``KeyboardInterrupt`` wherever the program is.
    """

    def __init__(self, *, insist: bool = True) -> None:
        self.signum: int | None = None
        self._insist = insist
        self._armed = False

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C and 143 after SIGTERM, as shells have it; 0 without a signal."""
        return 0 if self.signum is None else 128 + self.signum

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let a signal raise ``KeyboardInterrupt`` inside the block."""
        self._armed = True
        try:
            if self.signum is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._armed = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del frame
        first = self.signum is None
        if first:
            self.signum = signum
        if (first and self._armed) or (not first and self._insist):
            raise KeyboardInterrupt
