r"""Decision boundaries in the plane: networks of 3, 13 and 51 parameters, trained by Adam.

The three data sets and three networks of Auto-Tune (Jacobson & Gonzalez 2020)::

    python -m studies.boundaries --dataset 2 --net simple

Each pair is a study of its own in one file. Its learning rate alone, on a grid::

    python -m studies.boundaries --study grid --sampler grid \
        --sampler-arg 'search_space={"lr": [0.001, 0.01, 0.1, 1.0], "beta1": [0.9]}'

The size for a quick look, a few seconds on a CPU::

    python -m studies.boundaries --study quick --trials 8 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import boundaries
from studies._command import study_command
from studies._fused import fused_study


main = study_command(
    boundaries,
    data=lambda own: f"boundaries-{own['dataset']}",
    instead={"fused": fused_study(boundaries)},
)

if __name__ == "__main__":
    sys.exit(main(None))
