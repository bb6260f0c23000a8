from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
import pytest

from objectives.data import files


def _idx(array: NDArray[np.uint8]) -> bytes:
    """Write the IDX format as its description says, independently of our reader."""
    header = bytes([0, 0, 0x08, array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + sizes + array.tobytes())


def _publish(
    monkeypatch: pytest.MonkeyPatch, name: str, folder: Path, *, names: list[str]
) -> None:
    """Let the files of ``folder`` be the published ones."""
    hashes = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    published = files.Files(folder=folder.name, url=None, sha256=hashes)
    monkeypatch.setattr(files, name, published)


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with small sets in the real formats, pure noise but for the cats' twin."""
    rng = np.random.default_rng(0)
    for name, real in {"MNIST": files.MNIST, "FASHION": files.FASHION}.items():
        folder = tmp_path / real.folder
        folder.mkdir()
        contents = []
        for n in (240, 60):
            contents.append(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
            contents.append(rng.integers(0, 10, n, dtype=np.uint8))
        for file, content in zip(real.sha256, contents, strict=True):
            (folder / file).write_bytes(_idx(content))
        _publish(monkeypatch, name, folder, names=list(real.sha256))
    folder = tmp_path / files.CATS.folder
    folder.mkdir()
    train = rng.integers(0, 256, (31, 64, 64, 3), dtype=np.uint8)
    test = rng.integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
    train[12] = test[4]  # as in the real files
    for part, x in {"train": train, "test": test}.items():
        with h5py.File(folder / f"{part}_catvnoncat.h5", "w") as file:
            file[f"{part}_set_x"] = x
            file[f"{part}_set_y"] = np.arange(len(x)) % 3 == 0
    _publish(monkeypatch, "CATS", folder, names=list(files.CATS.sha256))
    return tmp_path
