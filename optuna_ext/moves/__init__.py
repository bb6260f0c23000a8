"""Searches that learn from a history: evaluated rows of the unit cube in, the next row out.

Every function is pure: the same history and the same random generator give the same row.
Everything is minimized.
"""

from optuna_ext.moves.history import History
from optuna_ext.moves.variation import Mutation


__all__ = ["History", "Mutation"]
