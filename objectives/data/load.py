"""Data sets as tensors: read, split and moved to the device once per process."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields
import functools
import os
import threading
from typing import Any

from numpy.typing import NDArray
import torch
from torch import Tensor

from objectives.data import files


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

    ==================  ===================================================  =====================
    name                rows                                                 train / valid / test
    ==================  ===================================================  =====================
    ``"digits"``        ``(n, 64)`` in [0, 1], bundled with scikit-learn     1197 / 300 / 300
    ==================  ===================================================  =====================

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

    del data_dir  # bundled
    x, y = load_digits(return_X_y=True)
    return _split(x / 16, y, valid=300, test=300)


def _split(x: NDArray[Any], y: NDArray[Any], *, valid: int, test: int) -> Data:
    """Hold out fixed, stratified validation and test rows."""
    from sklearn.model_selection import train_test_split

    rest_x, test_x, rest_y, test_y = train_test_split(
        x, y, test_size=test, stratify=y, random_state=0
    )
    train_x, valid_x, train_y, valid_y = train_test_split(
        rest_x, rest_y, test_size=valid, stratify=rest_y, random_state=0
    )
    return _tensors((train_x, train_y), (valid_x, valid_y), (test_x, test_y))


def _tensors(train: _Arrays, valid: _Arrays, test: _Arrays) -> Data:
    parts = {"train": train, "valid": valid, "test": test}
    x = {f"{part}_x": torch.as_tensor(x, dtype=torch.float32) for part, (x, _) in parts.items()}
    y = {f"{part}_y": torch.as_tensor(y, dtype=torch.int64) for part, (_, y) in parts.items()}
    return Data(**x, **y)


_READERS = {"digits": _digits}

NAMES = tuple(_READERS)
"""The data sets that :func:`load` knows."""
