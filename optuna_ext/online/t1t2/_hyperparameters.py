from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
import math
from typing import Any
from typing import Literal

import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules import activation


Scale = Literal["log", "logit", "softplus"]
Batch = Any

# How a number is described by a raw one without bounds, and how that is found.
_VALUE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.exp,
    "logit": torch.sigmoid,
    "softplus": F.softplus,
}
_RAW: dict[str, Callable[[float], float]] = {
    "log": math.log,
    "logit": lambda value: math.log(value / (1 - value)),
    "softplus": lambda value: value + math.log(-math.expm1(-value)),
}


class Hyperparameter:
    """A number in the training loss, for :class:`~optuna_ext.T1T2` to tune.

    This class does nothing by itself: the loss given to the tuner finds the value in its third
    argument, under ``name``, as a tensor of no dimensions. Anything differentiable will do: the
    weight of a loss term, a temperature, the strength of an augmentation.

    Example:

        .. testcode::

            import torch
            from torch.nn.functional import huber_loss, mse_loss
            from optuna_ext import T1T2
            from optuna_ext.online.t1t2 import Hyperparameter

            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


            def loss(model, batch, h):
                x, y = batch
                return mse_loss(model(x), y) + h["roughness"] * model.weight.abs().sum()


            tuner = T1T2(
                model,
                optimizer,
                [Hyperparameter("roughness", init=0.1, low=1e-4, high=10.0)],
                loss=loss,
                valid_loss=lambda model, batch: mse_loss(model(batch[0]), batch[1]),
                n_steps=20,
            )
            x = torch.randn(64, 4)
            for _ in range(20):
                tuner.step((x, x[:, :1]), (x, x[:, :1]))
            print(tuner.values)

    Args:
        name:
            What it is called in the loss and in the schedule.
        init:
            Its first value, between ``low`` and ``high``.
        low:
            Its least value.
        high:
            Its greatest value.
        scale:
            ``"log"`` (positive numbers that span decades), ``"softplus"`` (positive numbers) or
            ``"logit"`` (shares between 0 and 1).

    Raises:
        ValueError: If a number is out of the scale's domain or ``init`` out of bounds.
    """

    def __init__(
        self, name: str, *, init: float, low: float, high: float, scale: Scale = "log"
    ) -> None:
        if scale not in _VALUE:
            raise ValueError(f"`scale` must be one of {list(_VALUE)}, but got {scale!r}.")
        top = 1.0 if scale == "logit" else math.inf
        if not 0 < low < high < top:
            raise ValueError(
                f"`low` and `high` of {name!r} must be in increasing order between 0 and {top} "
                f"with scale={scale!r}, but got {low} and {high}."
            )
        if not low <= init <= high:
            raise ValueError(f"`init` of {name!r} must be in [{low}, {high}], but got {init}.")
        self.name = name
        self.init = init
        self.low = low
        self.high = high
        self.scale = scale

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds of the raw number."""
        return _RAW[self.scale](self.low), _RAW[self.scale](self.high)

    def names(self, model: nn.Module) -> list[str]:
        """Return what its numbers for a model are called; nearly always one."""
        del model
        return [self.name]

    def to_raw(self, value: float) -> float:
        """Return the raw number of a value, which is moved into the bounds."""
        return _RAW[self.scale](min(max(value, self.low), self.high))

    def to_value(self, raw: Tensor) -> Tensor:
        """Return the values of raw numbers."""
        return _VALUE[self.scale](raw)

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Return what the loss sees of a training batch."""
        del value, generator
        return batch

    @contextmanager
    def perturb(
        self, model: nn.Module, value: Tensor, generator: torch.Generator
    ) -> Iterator[None]:
        """Disturb the model while the training loss of a batch is computed."""
        del model, value, generator
        yield


class L2(Hyperparameter):
    """Weight of the L2 penalty ``l2 / 2 * |theta|^2`` on the weights, but not the biases.

    With AdamW the decay is decoupled from the gradient, as there; with the other optimizers it is
    coupled. The derivative is exact in both cases and costs one product per weight.

    Args:
        per_layer:
            Whether every layer has a weight of its own. A weight that several layers share
            belongs to the first.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self,
        *,
        per_layer: bool = False,
        init: float = 1e-4,
        low: float = 1e-7,
        high: float = 1e-1,
    ) -> None:
        super().__init__("l2", init=init, low=low, high=high)
        self.per_layer = per_layer

    def layers(self, model: nn.Module) -> dict[str, list[Tensor]]:
        """Return the decayed weights by the name of their number.

        Raises:
            ValueError: If there are none.
        """
        layers: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():  # shared weights come once
            if parameter.requires_grad and parameter.dim() >= 2:
                layer = name.rpartition(".")[0] or name
                layers.setdefault(f"l2/{layer}" if self.per_layer else "l2", []).append(parameter)
        if not layers:
            raise ValueError("L2 has nothing to decay: the model has no trainable weight matrix.")
        return layers

    def names(self, model: nn.Module) -> list[str]:
        """Return one name per layer, or one for all."""
        return list(self.layers(model))


class InputNoise(Hyperparameter):
    """Standard deviation of Gaussian noise added to the model's first input.

    At 0 the derivative vanishes, because the noise is symmetric: it must start above.

    Args:
        init:
            First value, in units of the input.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(self, *, init: float = 0.1, low: float = 1e-2, high: float = 2.0) -> None:
        super().__init__("input_noise", init=init, low=low, high=high)

    @contextmanager
    def perturb(
        self, model: nn.Module, value: Tensor, generator: torch.Generator
    ) -> Iterator[None]:
        """Add noise to the first input."""

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x, *others = inputs
            return (_noisy(x, value, generator), *others)

        handle = model.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Hidden(Hyperparameter):
    """Something random at the outputs of modules."""

    modules: Sequence[str] | None = None

    def names(self, model: nn.Module) -> list[str]:
        """Return the one name, after a look whether the modules are there."""
        self._places(model)
        return [self.name]

    def _places(self, model: nn.Module) -> list[nn.Module]:
        if self.modules is None:
            kinds = tuple(getattr(activation, name) for name in activation.__all__)
            found = [m for m in model.modules() if isinstance(m, kinds)]
            if not found:
                raise ValueError(
                    f"{type(self).__name__} found no activation modules in the model: name the "
                    "modules after which it acts in `modules`."
                )
            return found
        known = dict(model.named_modules())
        for name in self.modules:
            if name not in known:
                raise ValueError(
                    f"`modules` of {type(self).__name__} must be names of modules of the model, "
                    f"{[n for n in known if n]}, but got {name!r}."
                )
        return [known[name] for name in self.modules]

    def _act(self, x: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    @contextmanager
    def perturb(
        self, model: nn.Module, value: Tensor, generator: torch.Generator
    ) -> Iterator[None]:
        """Change the modules' outputs."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return self._act(output, value, generator)

        handles = [module.register_forward_hook(hook) for module in self._places(model)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class HiddenNoise(_Hidden):
    """Standard deviation of Gaussian noise added to hidden units.

    Args:
        modules:
            Names of the modules after which it acts, as ``model.named_modules()`` gives them. The
            default, :obj:`None`, is all activation functions.
        init:
            First value, in units of the hidden units.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self,
        *,
        modules: Sequence[str] | None = None,
        init: float = 0.1,
        low: float = 1e-2,
        high: float = 2.0,
    ) -> None:
        super().__init__("hidden_noise", init=init, low=low, high=high)
        self.modules = modules

    def _act(self, x: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
        return _noisy(x, value, generator)


class Dropout(_Hidden):
    """Share of hidden units that are dropped, relaxed so that it has a derivative.

    A unit is multiplied by ``1 - z``, where ``z`` is near 0 or 1 and smooth in the rate: the
    concrete distribution of temperature 0.1 (Gal, Hron and Kendall 2017, *Concrete dropout*). It
    takes the place of ``torch.nn.Dropout``.

    Args:
        modules:
            Names of the modules after which it acts. The default, :obj:`None`, is all activation
            functions.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self,
        *,
        modules: Sequence[str] | None = None,
        init: float = 0.1,
        low: float = 1e-2,
        high: float = 0.9,
    ) -> None:
        super().__init__("dropout", init=init, low=low, high=high, scale="logit")
        self.modules = modules

    def _act(self, x: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
        tiny = torch.finfo(x.dtype).eps
        u = torch.empty_like(x).uniform_(tiny, 1 - tiny, generator=generator)
        dropped = torch.sigmoid((torch.logit(value) + torch.logit(u)) / 0.1)
        return x * (1 - dropped) / (1 - value)


class LabelSmoothing(Hyperparameter):
    """Share of the label that is spread evenly over all classes (Szegedy et al. 2016).

    Batches are pairs of inputs and classes; the loss sees probabilities instead of classes, which
    ``torch.nn.functional.cross_entropy`` takes as well.

    Args:
        n_classes:
            The number of classes.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self, n_classes: int, *, init: float = 0.05, low: float = 1e-3, high: float = 0.5
    ) -> None:
        super().__init__("label_smoothing", init=init, low=low, high=high, scale="logit")
        self.n_classes = n_classes

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Smooth the labels."""
        x, y = batch
        return x, _soft(y, self.n_classes, value.dtype) * (1 - value) + value / self.n_classes


class Mixup(Hyperparameter):
    """Strength of mixup (Zhang et al. 2018): how far a row is moved towards another one.

    A batch, a pair of inputs and classes, becomes ``(1 - r) * batch + r * shuffled batch`` with
    one ``r`` uniform in ``[0, strength]``; so do the labels, which become probabilities.

    Args:
        n_classes:
            The number of classes.
        init:
            First value.
        low:
            Least value.
        high:
            Greatest value.
    """

    def __init__(
        self, n_classes: int, *, init: float = 0.1, low: float = 1e-2, high: float = 0.9
    ) -> None:
        super().__init__("mixup", init=init, low=low, high=high, scale="logit")
        self.n_classes = n_classes

    def transform(self, batch: Batch, value: Tensor, generator: torch.Generator) -> Batch:
        """Mix rows and labels."""
        x, y = batch
        share = value * torch.rand((), generator=generator, device=x.device, dtype=value.dtype)
        other = torch.randperm(len(x), generator=generator, device=x.device)
        soft = _soft(y, self.n_classes, value.dtype)
        return torch.lerp(x, x[other], share), torch.lerp(soft, soft[other], share)


def _noisy(x: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x + value.to(x.dtype) * noise


def _soft(y: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    return y if y.is_floating_point() else F.one_hot(y, n_classes).to(dtype)
