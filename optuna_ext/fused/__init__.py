"""Train many trials of a study as one program.

On CUDA, where launching the kernels of a small network takes longer than they do, the step of a
population is recorded as a CUDA graph for each shape of its batches, and replayed. That needs
room for two more copies of the weights and optimizer states once, when it is recorded. A network
or loss that waits for the device, makes tensors of Python numbers or changes attributes of its own
at each step cannot be recorded and is trained as elsewhere; ``Population.reason`` says so. Python
numbers that a loss refers to and attributes of modules may change between epochs; what changes
elsewhere, in a list or another module, a recording does not see. Not measured on a GPU yet.
"""

from optuna_ext.fused._checkpoint import CheckpointInUseError as CheckpointInUseError
from optuna_ext.fused._checkpoint import locked as locked
from optuna_ext.fused._losses import binary_cross_entropy as binary_cross_entropy
from optuna_ext.fused._losses import cross_entropy as cross_entropy
from optuna_ext.fused._member import Member as Member
from optuna_ext.fused._memory import memory_per_member as memory_per_member
from optuna_ext.fused._optimize import interrupted as interrupted
from optuna_ext.fused._optimize import optimize as optimize
from optuna_ext.fused._optimize import Summary as Summary
from optuna_ext.fused._population import Population as Population
from optuna_ext.fused._problem import Problem as Problem
from optuna_ext.fused._randomness import Dropout as Dropout
from optuna_ext.fused._randomness import GaussianNoise as GaussianNoise
from optuna_ext.fused._signature import signature as signature
from optuna_ext.fused._trainer import Trainer as Trainer
from optuna_ext.fused._training import Result as Result
