"""Loggers beneath Optuna's, so that ``optuna.logging`` decides on ours, too."""

from __future__ import annotations

import logging

import optuna


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, which Optuna's verbosity, format and handlers apply to.

    Args:
        name: The module's ``__name__``.
    """
    return optuna.logging.get_logger(f"optuna.{name}")
