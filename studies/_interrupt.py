"""Ctrl-C, SIGTERM, a closed terminal as an orderly end: once to stop, twice to leave at once."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


_MOMENT = 0.05  # seconds


def ending_signals() -> list[signal.Signals]:
    """Return the signals that ask a study to end."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # of a closed terminal; Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # as nohup wants it
        numbers.append(hangup)
    return numbers


class Interrupt:
    """Remembers the first signal, and raises ``KeyboardInterrupt`` where that does no harm.

    Args:
        insist: Whether a second signal raises ``KeyboardInterrupt`` wherever the program is.
    """

    def __init__(self, *, insist: bool = True) -> None:
        self.signum: int | None = None
        self._insist = insist
        self._armed = False
        self._is_lost = False
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it: 130 after Ctrl-C; 0 without a signal."""
        return 0 if self.signum is None else 128 + self.signum

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals inside the block."""
        before = {number: signal.signal(number, self._handle) for number in ending_signals()}
        hook = sys.unraisablehook
        sys.unraisablehook = partial(self._raise_again, hook)
        try:
            yield self
        finally:
            sys.unraisablehook = hook
            self._is_lost = False
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
        self._leave_closed_terminals()
        first = self.signum is None or self._is_lost
        self._is_lost = False
        self.signum = self.signum or signum
        if (first and self._armed) or (not first and self._insist):
            raise KeyboardInterrupt

    def _leave_closed_terminals(self) -> None:
        """Write to nowhere instead, where writing would fail from now on."""
        for fd in self._terminals:
            if not os.isatty(fd):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, fd)
                os.close(nowhere)

    def _raise_again(
        self, hook: Callable[[sys.UnraisableHookArgs], Any], unraisable: sys.UnraisableHookArgs
    ) -> None:
        """Repeat a signal whose exception Python dropped, as it does in ``__del__``."""
        if self.signum is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
            return
        self._is_lost = True
        # From another thread and a moment later, when the callback has returned.
        threading.Timer(_MOMENT, self._send_again).start()

    def _send_again(self) -> None:
        main = threading.main_thread().ident
        if self._is_lost and self.signum is not None and main is not None:
            signal.pthread_kill(main, self.signum)
