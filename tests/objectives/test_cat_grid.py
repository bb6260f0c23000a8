from __future__ import annotations

from pathlib import Path

import pytest

from objectives import cats
from objectives.cat_grid import Network
from objectives.cat_grid import train_together


def test_networks_of_several_widths_train_as_each_does_alone(
    small_data: Path, device: str
) -> None:
    hidden = [(10, 3, 1), (10, 7, 5), (10, 10, 6)]
    rates = [0.0034, 0.0075, 0.0078]
    networks = [Network(lr=lr, hidden=h) for lr, h in zip(rates, hidden, strict=True)]
    settings = {"iterations": 300, "data_dir": small_data, "seed": 4, "device": device}
    curves = train_together(networks, **settings)  # type: ignore[arg-type]
    for network, curve in zip(networks, curves, strict=True):
        h1, h2, h3 = network.hidden
        alone = cats.train_curve(lr=network.lr, h1=h1, h2=h2, h3=h3, **settings)  # type: ignore[arg-type]
        assert curve.keys() == alone.keys() == {0, 100, 200, 300}
        for step, result in alone.items():
            for part in ("train", "test"):
                one, two = getattr(result, part), getattr(curve[step], part)
                assert two.accuracy == pytest.approx(one.accuracy, abs=1e-12)
                assert two.loss == pytest.approx(one.loss, rel=1e-9)


def test_two_hidden_layers(small_data: Path) -> None:
    (curve,) = train_together([Network(lr=0.0075, hidden=(10, 5))], data_dir=small_data)
    alone = cats.train_curve(lr=0.0075, h1=10, h2=5, h3=None, data_dir=small_data)
    assert curve[700].train.loss == pytest.approx(alone[700].train.loss, rel=1e-9)


def test_mistakes(small_data: Path) -> None:
    network = Network(lr=0.1, hidden=(10, 3))
    with pytest.raises(ValueError, match="iterations must be a multiple of 100, but it is 150"):
        train_together([network], iterations=150, data_dir=small_data)
    with pytest.raises(ValueError, match="networks must have equal first layers, but they have"):
        train_together([network, Network(lr=0.1, hidden=(5, 3))], data_dir=small_data)
