"""Fashion-MNIST: a LeNet-style convolutional network on 70,000 pictures of clothes.

With a GPU; the data are downloaded when they are not in ``--data-dir``::

    python -m studies.fashion --amp

Two GPUs, a process on each::

    python -m studies.fashion --amp --devices cuda:0,cuda:1

The size for a CPU, TIME on two cores::

    python -m studies.fashion --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import fashion
from studies._command import study_command


main = study_command(fashion, data=lambda arguments: "fashion")

if __name__ == "__main__":
    sys.exit(main(None))
