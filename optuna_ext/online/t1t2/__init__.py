"""Tuning regularization by the gradient of a validation loss, inside one training."""

from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._hyperparameters import L2
from optuna_ext.online.t1t2._labels import LabelSmoothing
from optuna_ext.online.t1t2._labels import Mixup
from optuna_ext.online.t1t2._noise import Dropout
from optuna_ext.online.t1t2._noise import HiddenNoise
from optuna_ext.online.t1t2._noise import InputNoise
from optuna_ext.online.t1t2._tuner import T1T2


__all__ = [
    "Dropout",
    "HiddenNoise",
    "Hyperparameter",
    "InputNoise",
    "L2",
    "LabelSmoothing",
    "Mixup",
    "T1T2",
]
