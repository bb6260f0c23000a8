from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from objectives import nets
from optuna_ext.fused import Dropout


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "parameters"),
    [
        (nets.boundary_net("logistic"), 3),
        (nets.boundary_net("simple"), 13),
        (nets.boundary_net("three-layer"), 51),
        (nets.mlp((784, 10)), 7850),
        (nets.mlp((64, 32, 16, 10)), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        (nets.lenet(), 61_706),  # LeCun et al. 1998
    ],
)
def test_number_of_parameters(net: nn.Module, parameters: int) -> None:
    assert count(net) == parameters


def test_shapes() -> None:
    assert nets.mlp((64, 8, 10))(torch.zeros(3, 64)).shape == (3, 10)
    assert nets.lenet(channels=(4, 8), hidden=(32,))(torch.zeros(3, 784)).shape == (3, 10)
    assert nets.boundary_net("simple")(torch.zeros(3, 2)).shape == (3, 1)


def test_activation_and_dropout_follow_every_hidden_layer() -> None:
    net = nets.mlp((4, 3, 2, 1), activation="tanh", dropout=0.5, generator=torch.Generator())
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Linear, nn.Tanh, Dropout, nn.Linear, nn.Tanh, Dropout, nn.Linear]


def test_dropout_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dropout=0\.5 needs a generator"):
        nets.mlp((4, 3, 1), dropout=0.5)


def test_unknown_boundary_net_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="logistic.*simple.*three-layer.* is 'deep'"):
        nets.boundary_net("deep")


def test_the_seed_of_the_generator_decides_the_masks() -> None:
    def dropped(seed: int) -> list[bool]:
        generator = torch.Generator().manual_seed(seed)
        with nets.seeded(0):
            net = nets.mlp((4, 100, 100, 1), dropout=0.5, generator=generator)
        masks: list[bool] = (net[:5](torch.ones(1, 4)) == 0).flatten().tolist()
        return masks

    assert dropped(1) == dropped(1)
    assert dropped(1) != dropped(2)


def test_seeded_fixes_the_weights_and_restores_the_global_generator() -> None:
    before = torch.get_rng_state()
    built = []
    for seed in (1, 1, 2):
        with nets.seeded(seed):
            built.append(nn.Linear(3, 3).weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_boundary_nets_start_from_he_weights() -> None:
    with nets.seeded(0):
        weights = torch.cat(
            [nets.boundary_net("three-layer")[2].weight.flatten() for _ in range(400)]  # type: ignore[operator]
        )
    # Fan-in 5: a standard deviation of sqrt(2 / 5), far from the uniform default's 1 / sqrt(15).
    assert weights.std().item() == pytest.approx((2 / 5) ** 0.5, rel=0.03)


def test_cat_net_in_another_basis_is_the_same_function_as_the_course_net() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((7, 40))
    basis = np.linalg.qr(images.T).Q
    net = nets.cat_net((5, 3), basis=basis, seed=1)

    np.random.seed(1)  # noqa: NPY002 - the course's own code
    a = images.T
    widths = (40, 5, 3, 1)
    for i, o in zip(widths[:-1], widths[1:], strict=True):
        z = np.random.randn(o, i) / np.sqrt(i) @ a  # noqa: NPY002
        a = np.maximum(z, 0)
    np.testing.assert_allclose(
        net(torch.from_numpy(images @ basis))[:, 0].detach().numpy(), z[0], rtol=0, atol=1e-12
    )
