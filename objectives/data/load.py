"""Data sets as tensors: read, split and moved to the device once per process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields
from fractions import Fraction
import functools
import gzip
import itertools
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from objectives.data import files
from objectives.nets import boundary_net
from objectives.nets import seeded


_Arrays = tuple[NDArray[Any], NDArray[Any]]  # (n, ...) rows, (n,) classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A classification data set in three disjoint parts, as tensors on one device.

    Parameters are chosen by the validation rows; the test rows are for the last word on a finished
    trial.

    Args:
        train_x:
            ``(n, ...)`` rows, floating point.
        train_y:
            ``(n,)`` classes from 0 on, ``int64``.
        valid_x:
            Like ``train_x``, with another ``n``.
        valid_y:
            Like ``train_y``, with another ``n``.
        test_x:
            Like ``train_x``, with another ``n``.
        test_y:
            Like ``train_y``, with another ``n``.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def to(self, device: str | torch.device) -> Data:
        """Copy to ``device`` what is not there yet."""
        return Data(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


def load(
    name: str,
    *,
    device: str | torch.device = "cpu",
    data_dir: str | os.PathLike[str] | None = None,
) -> Data:
    """Load a data set, once per process and device.

    ================  ==============================================  ======================
    name              rows                                            train / valid / test
    ================  ==============================================  ======================
    ``digits``        ``(n, 64)`` in [0, 1], from scikit-learn        1197 / 300 / 300
    ``mnist``         ``(n, 784)`` in [0, 1], files                   55,000 / 5,000 / 10,000
    ``fashion``       ``(n, 784)`` in [0, 1], files                   50,000 / 10,000 / 10,000
    ``cats``          ``(n, 12288)`` in [0, 1], float64, files        209 / the test rows / 50
    ``boundaries-1``  ``(n, 2)``, made by scikit-learn, 1% mislabeled  8,000 / 2,000 / 2,000
    ``boundaries-2``  the same points, classes by a 2-3-1 network     8,000 / 2,000 / 2,000
    ``boundaries-3``  the same points, classes by a 2-5-5-1 network   8,000 / 2,000 / 2,000
    ================  ==============================================  ======================

    Args:
        name:
            A name of the table.
        device:
            Where the tensors live.
        data_dir:
            The directory of the data sets that come as files; ``None`` means
            ``$OPTUNA_EXT_DATA``. Missing files are downloaded into pooch's cache.

    Raises:
        ValueError: If there is no such data set.
        DataNotFoundError: If its files are not there and cannot be downloaded.
        CorruptDataError: If a file is not the published one.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is not a data set; choose one of {', '.join(NAMES)}.")
    directory = data_dir or os.environ.get(files.ENVIRONMENT)
    with _loading:  # threads of one process must not read, and keep, the same set twice
        return _load(name, torch.device(device), directory and os.path.abspath(directory))


_loading = threading.Lock()


@functools.cache
def _load(name: str, device: torch.device, data_dir: str | None) -> Data:
    return _READERS[name](data_dir).to(device)


def _digits(data_dir: str | None) -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    del data_dir  # bundled
    x, y = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(x / 16, y, test_size=300, stratify=y, random_state=0)
    x, valid_x, y, valid_y = train_test_split(x, y, test_size=300, stratify=y, random_state=0)
    return _tensors((x, y), (valid_x, valid_y), (test_x, test_y))


def _images(published: files.Files, data_dir: str | None, *, valid: Fraction) -> Data:
    """Read the four files of MNIST's format; the last training rows become the validation rows."""
    paths = published.find(data_dir)
    train_x, train_y, test_x, test_y = (_idx(gzip.decompress(path.read_bytes())) for path in paths)
    n = len(train_x) - int(len(train_x) * valid)
    return _tensors(
        (_pixels(train_x[:n]), train_y[:n]),
        (_pixels(train_x[n:]), train_y[n:]),
        (_pixels(test_x), test_y),
    )


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)


def _idx(content: bytes) -> NDArray[np.uint8]:
    """Decode the IDX format: two zeros, 8 for uint8, the number of dimensions, them, the data."""
    d = content[3]
    shape = np.frombuffer(content, ">i4", count=d, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * d).reshape(shape)


def _cats(data_dir: str | None) -> Data:
    """Read the course's two files in float64; it validates on its test images."""
    import h5py

    parts = []
    for part, path in zip(("train", "test"), files.CATS.find(data_dir), strict=True):
        with h5py.File(path) as file:
            x, y = file[f"{part}_set_x"][:], file[f"{part}_set_y"][:]
        parts.append((x.reshape(len(x), -1) / 255, y))
    train, test = parts
    return _tensors(train, test, test, dtype=torch.float64)


def _boundaries(data_dir: str | None, *, teacher: str | None) -> Data:
    """Make a data set of Auto-Tune (Jacobson & Gonzalez 2020) as it was meant.

    12,000 points of the plane, of which the last 2,000 are for testing. The classes are those of
    the points, or those a random network, the teacher, gives them. The original kept the teacher's
    soft outputs and one teacher in four put all points into one class: here they are thresholded
    at 1/2, and teachers are drawn until the smaller class has 30% of the points.
    """
    from sklearn.datasets import make_classification

    del data_dir  # generated
    x, y = make_classification(
        n_samples=12_000,
        n_features=2,
        n_redundant=0,
        n_informative=2,
        n_clusters_per_class=1,
        random_state=7,
    )
    if teacher is not None:
        points = torch.as_tensor(x, dtype=torch.float32)
        labelings = (_classify(points, teacher, seed) for seed in itertools.count())
        y = next(labels for labels in labelings if 0.3 <= labels.mean() <= 0.7)
    train, valid, test = slice(0, 8_000), slice(8_000, 10_000), slice(10_000, None)
    return _tensors((x[train], y[train]), (x[valid], y[valid]), (x[test], y[test]))


@torch.no_grad()
def _classify(points: Tensor, net: str, seed: int) -> NDArray[np.bool_]:
    with seeded(seed):
        return np.asarray(boundary_net(net)(points)[:, 0] > 0)


def _tensors(
    train: _Arrays, valid: _Arrays, test: _Arrays, *, dtype: torch.dtype = torch.float32
) -> Data:
    parts = {"train": train, "valid": valid, "test": test}
    x = {f"{part}_x": torch.tensor(x, dtype=dtype) for part, (x, _) in parts.items()}
    y = {f"{part}_y": torch.tensor(y, dtype=torch.int64) for part, (_, y) in parts.items()}
    return Data(**x, **y)


# Called with the data directory; the files are looked up late, so that tests can replace them.
_READERS: dict[str, Callable[[str | None], Data]] = {
    "digits": _digits,
    "mnist": lambda data_dir: _images(files.MNIST, data_dir, valid=Fraction(5, 60)),
    "fashion": lambda data_dir: _images(files.FASHION, data_dir, valid=Fraction(10, 60)),
    "cats": _cats,
    "boundaries-1": functools.partial(_boundaries, teacher=None),
    "boundaries-2": functools.partial(_boundaries, teacher="simple"),
    "boundaries-3": functools.partial(_boundaries, teacher="three-layer"),
}

NAMES = tuple(_READERS)
"""The data sets that :func:`load` knows."""
