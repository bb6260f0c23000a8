"""Kinds of modules: trained exactly, by the engine that can, or refused; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import Adam
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from optuna_ext.fused import Dropout
from optuna_ext.fused import GaussianNoise
from optuna_ext.fused import Member
from optuna_ext.fused import Population
from optuna_ext.fused import signature


class First(nn.Module):
    """Takes the first of several outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.module(*inputs)[0]
        return output


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return output


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.two(torch.tanh(self.one(x)))
        return h


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x * 2
        h += 1
        return h.relu_()


class Counting(nn.Module):
    """Puts a new buffer in the place of the old one."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        h[x > 0] = 0
        return h


class FreshZeros(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        h[:, 1:] = x[:, :-1]
        return h


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = checkpoint(self.linear, x, use_reentrant=False)
        return h


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)  # decays neither alone nor here

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.linear(x)
        return h


IMAGES = (3, 6, 6)
WORDS = (5, 4)
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "linear": (lambda: nn.Linear(4, 4), (4,), {"vmap"}),
    "in place": (InPlace, (4,), {"vmap"}),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), IMAGES, {"vmap"}),
    "grouped convolution": (lambda: nn.Conv2d(3, 6, 3, groups=3), IMAGES, {"vmap"}),
    "pooling": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
        IMAGES,
        {"vmap"},
    ),
    "batch normalization": (lambda: nn.BatchNorm1d(4), (4,), {"vmap"}),
    "batch normalization of images": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        IMAGES,
        {"vmap"},
    ),
    "layer normalization": (lambda: nn.LayerNorm(4), (4,), {"vmap"}),
    "group normalization": (lambda: nn.GroupNorm(1, 3), IMAGES, {"vmap"}),
    "instance normalization": (lambda: nn.InstanceNorm2d(3, affine=True), IMAGES, {"vmap"}),
    "attention": (Attention, WORDS, {"vmap", "grad"}),
    "products": (Products, WORDS, {"vmap"}),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0, batch_first=True),
        WORDS,
        {"vmap", "grad"},
    ),
    "tied weights": (Tied, (4,), {"vmap"}),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), (4,), {"vmap"}),
    "lstm": (lambda: First(nn.LSTM(4, 3, batch_first=True)), WORDS, {"grad"}),
    "gru": (lambda: First(nn.GRU(4, 3, batch_first=True)), WORDS, {"grad"}),
    "rnn": (lambda: First(nn.RNN(4, 3, batch_first=True)), WORDS, {"grad"}),
    "lstm cell": (lambda: First(nn.LSTMCell(4, 3)), (4,), {"grad"}),
    "new buffers": (Counting, (4,), {"vmap"}),
    "item": (Branching, (4,), {"loop"}),
    "boolean mask": (Masking, (4,), {"loop"}),
    "fresh zeros": (FreshZeros, (4,), {"loop"}),
    "checkpoint": (Checkpointed, (4,), {"loop"}),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), (4,), {"loop"}),
    "unused parameters": (Unused, (4,), {"loop"}),
    "dropout": (lambda: Dropout(0.3), (4,), {"vmap"}),
    "dropout of channels": (lambda: Dropout(0.3, channels=True), IMAGES, {"vmap"}),
    "noise": (lambda: GaussianNoise(0.3), (4,), {"vmap"}),
}


class Net(nn.Module):
    """A module of the zoo between a dense layer and a head."""

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(6, torch.Size(shape).numel())
        self.middle = build()
        with torch.no_grad():
            size = self.middle.float().eval()(torch.zeros(2, *shape)).numel() // 2
        self.last = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.first(x).view(-1, *self.shape))
        outputs: Tensor = self.last(h.reshape(len(x), -1))
        return outputs


def _loss(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y, reduction="none")


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("wanted", ["vmap", "grad", "auto"])
def test_modules(
    name: str, wanted: str, device: str, assert_same: Callable[..., Population]
) -> None:
    make, shape, engines = ZOO[name]
    if wanted == "grad" and engines == {"vmap"}:
        pytest.skip("vmap does it")
    x = torch.randn(24, 6, dtype=torch.float64, device=device)
    y = torch.randint(3, (24,), device=device)

    def build(i: int) -> Member:
        torch.manual_seed(i)
        model = Net(make, shape).double().train()
        optimizer = SGD(model.parameters(), lr=0.05 * (i + 1), weight_decay=0.1)
        return Member(model=model, optimizer=optimizer, batch_size=10, seed=i)

    assert signature(build(0)) == signature(build(1))
    if wanted not in engines and wanted != "auto":
        with pytest.raises(ValueError, match=f"engine must not be '{wanted}'"):
            assert_same(build, 3, x, y, engine=wanted, loss=_loss, epochs=1)
        return
    population = assert_same(build, 3, x, y, engine=wanted, loss=_loss, epochs=5)
    if wanted == "auto":
        assert population.engine in {"loop", *engines}
        assert ("Not vmap" in population.reason) == ("vmap" not in engines)


@pytest.mark.parametrize("device", ["cpu"])
def test_an_embedding_takes_integers(device: str, assert_same: Callable[..., Population]) -> None:
    x = torch.randint(7, (30, 4), device=device)
    y = torch.randint(3, (30,), device=device)

    def build(i: int) -> Member:
        torch.manual_seed(i)
        model = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(20, 3)).double()
        optimizer = Adam(model.parameters(), lr=0.05)
        return Member(model=model, optimizer=optimizer, batch_size=8 + i, seed=i)

    assert_same(build, 3, x, y, engine="vmap", loss=_loss)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: nn.AlphaDropout(0.3),
        lambda: nn.RReLU(),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True),
    ],
)
def test_what_draws_from_torch_s_generator_is_trained_one_by_one(
    draw: Callable[[], nn.Module],
) -> None:
    shape = WORDS
    x, y = torch.randn(12, 6), torch.randint(3, (12,))

    def member(i: int) -> Member:
        torch.manual_seed(i)
        model = Net(draw, shape)
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1), seed=i)

    def train(slots: int) -> list[float]:
        population = Population(member(0), slots=slots, loss=_loss)
        for slot in range(slots):
            population.admit(slot, member(slot))
        losses = [population.train_epoch(x, y)[0].item() for _ in range(4)]
        assert population.engine == "loop", population.reason
        return losses

    assert train(1) == train(3)  # the others' draws change nothing


def test_torch_s_dropout_layers_become_the_member_s_own() -> None:
    x, y = torch.randn(40, 6), torch.randint(3, (40,))

    def member(i: int) -> Member:
        torch.manual_seed(i)
        model = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.2 * i), nn.Linear(50, 3))
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1), seed=i)

    def train(members: list[int]) -> list[float]:
        population = Population(member(0), slots=len(members), loss=_loss, engine="vmap")
        for slot, i in enumerate(members):
            population.admit(slot, member(i))
        state = population.state_of(0)["model"]
        assert [*state] == [*nn.Sequential(*member(0).model.children()).state_dict()]
        return [population.train_epoch(x, y)[members.index(2)].item() for _ in range(4)]

    assert train([0, 2, 3]) == pytest.approx(train([2, 1]), rel=1e-5)
    assert signature(member(1)) == signature(member(2))


class Scaled(nn.Module):
    def __init__(self, alpha: float, *, training_only: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.training_only = training_only

        def scale() -> float:
            return alpha

        self._hidden = _Box(scale)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.linear(x)
        return h if self.training_only and not self.training else h * self._hidden.value()


class _Box:
    """Hides a number from whoever compares attributes; equal to every box."""

    def __init__(self, value: Callable[[], float]) -> None:
        self.value = value


@pytest.mark.parametrize("training_only", [False, True])
def test_a_hidden_attribute_that_differs_is_found(training_only: bool) -> None:
    x, y = torch.randn(12, 6), torch.randint(3, (12,))

    def member(alpha: float) -> Member:
        model = Scaled(alpha, training_only=training_only)
        return Member(model=model, optimizer=SGD(model.parameters(), lr=0.1))

    def population(engine: str) -> Population:
        made = Population(member(1), slots=2, loss=_loss, engine=engine)
        for slot, alpha in enumerate((1.0, 2.0)):
            made.admit(slot, member(alpha))
        return made

    assert signature(member(1)) != signature(member(2))  # so they would not get here
    with pytest.raises(ValueError, match="neither a parameter nor a buffer"):
        population("vmap").train_epoch(x, y)
    automatic = population("auto")
    automatic.train_epoch(x, y)
    assert automatic.engine == "loop"

    late = population("vmap")
    late.release(1)
    late.train_epoch(x, y)
    late.admit(1, member(3))
    if not training_only:
        with pytest.raises(ValueError, match="not those of its own module"):
            late.train_epoch(x, y)
