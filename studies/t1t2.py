"""T1-T2 on MNIST: L2 and input noise, tuned by the gradient of a validation loss.

A study chooses where they start and how often they move; the dashboard shows what became of them
with every trial::

    python -m studies.t1t2 --data-dir path/to/data --sampler tpe --pruner median --trials 16
    optuna-dashboard sqlite:///runs/t1t2.db

The experiment of Fioravanti (2020) in full, with a GPU, for each of its three networks::

    python -m studies.t1t2 --experiment --net small --trials 20 --epochs 50

The size for a CPU, some minutes::

    python -m studies.t1t2 --experiment --width 0.3 --trials 10 --epochs 5

What it costs: the time of a step over that of the same step without a tuner, some minutes::

    python -m studies.t1t2 --overhead
"""

from __future__ import annotations

import sys

from objectives import t1t2
from studies._command import study_command
from studies._t1t2_experiment import experiment
from studies._t1t2_time import overhead
from studies._trajectories import trajectories


main = study_command(
    t1t2,
    data=lambda own: "mnist",
    instead={"experiment": experiment, "overhead": overhead},
    charts={"trajectories": trajectories},
)

if __name__ == "__main__":
    sys.exit(main(None))
