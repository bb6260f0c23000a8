"""Hyperparameters that disturb the model."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch import Tensor
from torch.nn.modules import activation

from optuna_ext.online.t1t2._hyperparameters import Hyperparameter


class _Disturbance(Hyperparameter):
    """Something random in the model."""

    def _checked(self, x: object, what: str) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{type(self).__name__} needs a tensor of floating point, but {what} is {kind}."
            )
        return x


class InputNoise(_Disturbance):
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
            x, *others = inputs or (None,)
            x = self._checked(x, "the model's first input")
            return (_noisy(x, value, generator), *others)

        handle = model.register_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Hidden(_Disturbance):
    """Something random at the outputs of modules."""

    modules: Sequence[str] | None = None

    def names(self, model: nn.Module) -> list[str]:
        """Return the one name, after a look whether the modules are there."""
        self._places(model)
        return [self.name]

    def _places(self, model: nn.Module) -> list[nn.Module]:
        if self.modules is None:
            kinds = tuple(getattr(activation, name) for name in activation.__all__)
            found = [
                module
                for module in model.modules()
                if isinstance(module, kinds) and not isinstance(module, nn.MultiheadAttention)
            ]
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

        def hook(module: nn.Module, inputs: Any, output: object) -> Tensor:
            x = self._checked(output, f"the output of {type(module).__name__}")
            return self._act(x, value, generator)

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
        dtype = _fine(x)
        tiny = torch.finfo(dtype).eps
        u = torch.empty_like(x, dtype=dtype).uniform_(tiny, 1 - tiny, generator=generator)
        dropped = torch.sigmoid((torch.logit(value) + torch.logit(u)) / 0.1)
        return x * ((1 - dropped) / (1 - value)).to(x.dtype)


def _noisy(x: Tensor, value: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=_fine(x))
    return x + (value * noise).to(x.dtype)


def _fine(x: Tensor) -> torch.dtype:
    """Return the type to draw in: the same numbers for ``x`` and for what autocast makes of it."""
    return torch.promote_types(x.dtype, torch.float32)
