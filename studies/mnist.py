"""MNIST: a LeNet-style convolutional network on the 70,000 handwritten digits.

With a GPU; the data are downloaded when they are not in ``--data-dir``::

    python -m studies.mnist --amp

Two GPUs, a process on each::

    python -m studies.mnist --amp --devices cuda:0,cuda:1

The size for a CPU, two minutes or so::

    python -m studies.mnist --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import mnist
from studies._command import study_command
from studies._fused import fused_study


main = study_command(mnist, data=lambda arguments: "mnist", instead={"fused": fused_study(mnist)})

if __name__ == "__main__":
    sys.exit(main(None))
