"""What is optimized: real training runs as Optuna objectives, on GPU or CPU.

Every module publishes ``SPACE`` (all parameters that can occur, conditional ones included),
``DIRECTION``, ``DEFAULTS`` (a sensible starting point), ``EPOCHS`` and ``objective(trial, ...)``.

Example:
    .. code-block:: python

        import objectives
        import optuna

        study = optuna.create_study(direction=objectives.digits.DIRECTION)
        study.optimize(objectives.digits.objective, n_trials=20)

torch is imported when an objective is first called, so reading a ``SPACE`` costs nothing.
"""

from objectives import boundaries
from objectives import cats
from objectives import digits
from objectives import fashion
from objectives import hypergradient
from objectives import mnist


__all__ = ["boundaries", "cats", "digits", "fashion", "hypergradient", "mnist"]
