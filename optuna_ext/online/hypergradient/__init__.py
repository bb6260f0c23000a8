"""Optimizers that tune their own learning rate by hypergradient descent."""

from optuna_ext.online.hypergradient._adam import HypergradientAdam
from optuna_ext.online.hypergradient._adam import HypergradientAdamW
from optuna_ext.online.hypergradient._recorder import RateRecorder
from optuna_ext.online.hypergradient._sgd import HypergradientSGD


__all__ = ["HypergradientAdam", "HypergradientAdamW", "HypergradientSGD", "RateRecorder"]
