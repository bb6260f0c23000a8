"""Train many trials of a study as one program."""

from optuna_ext.fused._member import Member as Member
from optuna_ext.fused._population import Population as Population
from optuna_ext.fused._randomness import Dropout as Dropout
from optuna_ext.fused._randomness import GaussianNoise as GaussianNoise
from optuna_ext.fused._signature import signature as signature
