from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch import Tensor

from optuna_ext.fused import Dropout
from optuna_ext.fused import GaussianNoise


ONES = torch.ones(400, 250, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    outputs = Dropout(p, seed=3)(ONES)
    dropped = (outputs == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=5 * (p * (1 - p) / ONES.numel()) ** 0.5)
    assert outputs.max().item() == pytest.approx(1 / (1 - p))


@pytest.mark.parametrize("layer", [Dropout(0.5), GaussianNoise(1.0)])
def test_numbers_look_independent(layer: nn.Module) -> None:
    first, second = layer(ONES) - 1, layer(ONES) - 1
    pairs = [
        (first, second),  # calls
        (first[1:], first[:-1]),  # rows
        (first[:, 1:], first[:, :-1]),  # units
        (first[:, 64:], first[:, :-64]),
    ]
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / a.numel() ** 0.5


def test_noise_is_normal() -> None:
    noise = (GaussianNoise(2.0, seed=1)(ONES) - ONES) / 2
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 / n**0.5)
    assert noise.pow(2).mean().item() == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    assert torch.isfinite(GaussianNoise(1.0)(torch.zeros(1000, 1000))).all()


@pytest.mark.parametrize("kind", [Dropout, GaussianNoise])
def test_numbers_belong_to_seed_layer_and_call(
    kind: type[Dropout | GaussianNoise],
) -> None:
    def outputs(seed: int, layer: int) -> Tensor:
        made: Tensor = kind(0.5, seed=seed, layer=layer)(ONES)
        return made

    assert torch.equal(outputs(1, 2), outputs(1, 2))
    assert not torch.equal(outputs(1, 2), outputs(2, 2))
    assert not torch.equal(outputs(1, 2), outputs(1, 3))
    layer = kind(0.5, seed=1, layer=2)
    assert torch.equal(layer(ONES), outputs(1, 2))
    assert not torch.equal(layer(ONES), outputs(1, 2))


def test_smaller_batches_have_the_same_first_rows() -> None:
    assert torch.equal(Dropout(0.5)(ONES)[:7], Dropout(0.5)(ONES[:7]))


def test_torch_s_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    Dropout(0.5)(ONES)
    GaussianNoise(0.5)(ONES)
    assert torch.equal(torch.get_rng_state(), state)


def test_channels_are_dropped_as_a_whole() -> None:
    outputs = Dropout(0.5, channels=True)(torch.ones(8, 16, 3, 3))
    assert set(outputs.mean((2, 3)).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind", [Dropout, GaussianNoise])
def test_evaluation_and_restart(kind: type[Dropout | GaussianNoise]) -> None:
    layer = kind(0.5, seed=1)
    layer(ONES)
    assert layer.eval()(ONES) is ONES
    other = kind(0.5, seed=1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.train()(ONES), other(ONES))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Dropout(1.0), r"p must be in \[0, 1\), but it is 1.0"),
        (lambda: Dropout(-0.1), r"p must be in"),
        (lambda: GaussianNoise(-1), r"std must be at least 0, but it is -1"),
    ],
)
def test_wrong_arguments_get_a_sentence(build: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_representation() -> None:
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"
    assert repr(GaussianNoise(0.25)) == "GaussianNoise(std=0.25)"
