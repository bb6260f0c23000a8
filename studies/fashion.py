"""Fashion-MNIST: the learning rate of softmax regression.

The first study of Dive into Deep Learning (section 19.1), with a validation split of its own.

Eight epochs take a second or so on a CPU; data are downloaded when not in ``--data-dir``::

    python -m studies.fashion --trials 8

With the batches of the book, which take longer::

    python -m studies.fashion --study book --batch-size 16 --trials 5

The size for a quick look::

    python -m studies.fashion --study quick --trials 4 --epochs 1
"""

from __future__ import annotations

import sys

from objectives import fashion
from studies._command import study_command
from studies._fused import fused_study


main = study_command(
    fashion, data=lambda arguments: "fashion", instead={"fused": fused_study(fashion)}
)

if __name__ == "__main__":
    sys.exit(main(None))
