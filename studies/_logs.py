"""Warnings in one line each, and no line of Optuna's per trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import logging
import re

import optuna
from rich.console import Console


@contextmanager
def quiet_optuna(handler: logging.Handler) -> Iterator[None]:
    """Send warnings to ``handler``, each of them once; Optuna's line per trial goes nowhere."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.disable_default_handler()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    handler.addFilter(_News())
    handler.setFormatter(_OneLine())
    loggers = [logging.getLogger(name) for name in ("optuna", "py.warnings", "objectives")]
    for logger in loggers:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        optuna.logging.set_verbosity(verbosity)
        optuna.logging.enable_default_handler()


class ConsoleHandler(logging.Handler):
    """Prints records above a progress bar, if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _News:
    """Lets pass what was not said before, but for the numbers in it."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        # How a trial fails is said by its attribute "reason", in one line without a traceback.
        if re.match(r"Trial \d+ fail", text):
            return False
        text = re.sub(r"\d+", "#", text)
        is_new = text not in self._said
        self._said.add(text)
        return is_new


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.name == "py.warnings":  # whose further lines quote the source
            text = text.partition("\n")[0]
        return f"{record.levelname.lower()}: {' '.join(text.split())}"
