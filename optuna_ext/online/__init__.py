"""Tuning inside a training: what changes while the weights do.

The tuners need torch; what records their work does not.
"""

from optuna_ext.online._record import record
from optuna_ext.online._record import recorded
from optuna_ext.online._record import Recorder
from optuna_ext.online._splits import check_disjoint


__all__ = ["Recorder", "check_disjoint", "record", "recorded"]
