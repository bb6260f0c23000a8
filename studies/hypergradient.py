"""Learning rates that tune themselves, and how far one gets without searching for one.

Where to begin, how fast to move, and which optimizer, on the digits or on MNIST; the trajectories
of the learning rates are drawn beside the figure and on the dashboard::

    python -m studies.hypergradient --sampler tpe --pruner median
    python -m studies.hypergradient --data mnist --net mlp --artifacts runs/artifacts

What was published, once more: Baydin et al. (2018) on MNIST, and Auto-Tune (Jacobson & Gonzalez
2020) on decision boundaries, a minute or two each::

    python -m studies.hypergradient --table --seeds 3 --figure starts.html
    python -m studies.hypergradient --cases

What a step costs, over one of torch's own optimizers::

    python -m studies.hypergradient --cost --device cpu

The size for a quick look::

    python -m studies.hypergradient --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import hypergradient
from studies._auto_tune import cases
from studies._baydin import table
from studies._command import study_command
from studies._step_time import cost
from studies._trajectories import trajectories


main = study_command(
    hypergradient,
    data=lambda own: str(own["data"]),
    instead={"table": table, "cases": cases, "cost": cost},
    charts={"trajectories": trajectories},
)

if __name__ == "__main__":
    sys.exit(main(None))
