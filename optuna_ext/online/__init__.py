"""Tuning inside a training: hyperparameters that change while the weights do. It needs torch."""

from optuna_ext.online._record import record
from optuna_ext.online._record import recorded
from optuna_ext.online._splits import check_disjoint


__all__ = ["check_disjoint", "record", "recorded"]
