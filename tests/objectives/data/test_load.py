from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
import torch
from torch import Tensor

from objectives.data import CorruptDataError
from objectives.data import Data
from objectives.data import files
from objectives.data import load
from objectives.data import NAMES


def parts(data: Data) -> list[tuple[Tensor, Tensor]]:
    return [
        (data.train_x, data.train_y),
        (data.valid_x, data.valid_y),
        (data.test_x, data.test_y),
    ]


def sorted_rows(x: Tensor) -> NDArray[np.float64]:
    return np.array(sorted(map(tuple, x.tolist())))


def test_every_set_has_its_documented_form(small_data: Path, device: str) -> None:
    for name in NAMES:
        data = load(name, device=device, data_dir=small_data)
        for x, y in parts(data):
            assert x.device.type == y.device.type == device
            assert x.is_floating_point()
            assert y.dtype == torch.int64
            assert x.ndim == 2
            assert len(x) == len(y) > 0
            assert y.min() >= 0


def test_digits_are_split_without_overlap_or_loss() -> None:
    data = load("digits")
    assert [len(y) for _, y in parts(data)] == [1197, 300, 300]
    everything = torch.cat([x for x, _ in parts(data)])
    original = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    np.testing.assert_array_equal(sorted_rows(everything), sorted_rows(original))
    shares = [torch.bincount(y) / len(y) for _, y in parts(data)]
    torch.testing.assert_close(shares[1], shares[0], atol=0.005, rtol=0)
    torch.testing.assert_close(shares[2], shares[0], atol=0.005, rtol=0)


@pytest.mark.parametrize(("name", "sizes"), [("mnist", [220, 20, 60]), ("fashion", [200, 40, 60])])
def test_validation_images_are_the_last_training_images(
    name: str, sizes: list[int], small_data: Path
) -> None:
    data = load(name, data_dir=small_data)
    assert [len(y) for _, y in parts(data)] == sizes
    rows = torch.cat([x for x, _ in parts(data)])
    assert len(torch.unique(rows, dim=0)) == 300  # noise: every image is there once
    assert rows.min() == 0
    assert rows.max() == 1


def test_the_cats_are_what_the_files_hold(small_data: Path) -> None:
    data = load("cats", data_dir=small_data)
    assert data.train_x.dtype == torch.float64
    assert [x.shape for x, _ in parts(data)] == [(31, 12288), (10, 12288), (10, 12288)]
    assert torch.equal(data.valid_x, data.test_x)  # the document's protocol
    assert torch.equal(data.train_x[12], data.test_x[4])


@pytest.mark.parametrize("dataset", [1, 2, 3])
def test_boundaries_are_balanced_and_split(dataset: int) -> None:
    data = load(f"boundaries-{dataset}")
    assert [len(y) for _, y in parts(data)] == [8_000, 2_000, 2_000]
    rows = torch.cat([x for x, _ in parts(data)])
    assert len(torch.unique(rows, dim=0)) == 12_000
    labels = torch.cat([y for _, y in parts(data)]).double()
    assert 0.3 <= labels.mean().item() <= 0.7
    assert set(labels.tolist()) == {0, 1}


def test_boundaries_share_their_points_and_differ_in_classes() -> None:
    first, second, third = (load(f"boundaries-{i}") for i in (1, 2, 3))
    assert torch.equal(first.train_x, second.train_x)
    assert torch.equal(first.train_x, third.train_x)
    assert not torch.equal(first.train_y, second.train_y)
    assert not torch.equal(second.train_y, third.train_y)


def test_the_first_boundary_has_the_known_ceiling() -> None:
    # 1% of the classes are flipped at random, half of them to what they were.
    data = load("boundaries-1")
    model = LogisticRegression().fit(data.train_x.numpy(), data.train_y.numpy())
    assert model.score(data.test_x.numpy(), data.test_y.numpy()) == pytest.approx(0.995, abs=0.004)


def test_a_set_is_read_once_and_by_one_thread(small_data: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load("mnist", data_dir=small_data), range(4)))
    assert all(data is loaded[0] for data in loaded)
    assert load("mnist", data_dir=str(small_data)) is loaded[0]


def test_the_directory_of_the_environment_is_read_when_asked(
    small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.ENVIRONMENT, str(small_data))
    assert load("fashion") is load("fashion", data_dir=small_data)


def test_a_truncated_archive_is_one_sentence(small_data: Path) -> None:
    path = small_data / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptDataError, match="train-images-idx3-ubyte.gz does not have"):
        load("mnist", data_dir=small_data)


def test_an_unknown_set_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="'cifar' is not a data set; choose one of digits, mnist"):
        load("cifar")


@pytest.mark.data
def test_the_real_sets_have_their_documented_sizes(real_data: Path) -> None:
    sizes = {
        name: [len(y) for _, y in parts(load(name, data_dir=real_data))]
        for name in ("mnist", "fashion", "cats")
    }
    assert sizes == {
        "mnist": [55_000, 5_000, 10_000],
        "fashion": [50_000, 10_000, 10_000],
        "cats": [209, 50, 50],
    }
    cats = load("cats", data_dir=real_data)
    assert [int(y.sum()) for _, y in parts(cats)] == [72, 33, 33]
    fashion = load("fashion", data_dir=real_data)
    assert torch.bincount(fashion.test_y).tolist() == [1000] * 10
