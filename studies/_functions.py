"""Fast test functions with a known optimum, a new instance for every seed.

Every minimum is 0. The continuous ones are those of BBOB (Hansen et al. 2009, "Real-Parameter
Black-Box Optimization Benchmarking: Noiseless Functions Definitions", INRIA RR-6829), shifted as
there, but neither rotated nor warped.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.trial import BaseTrial

from objectives.space import suggest


Vector = npt.NDArray[np.float64]


class Instance(abc.ABC):
    """One instance of a test function: an objective whose optimum is known.

    Attributes:
        space: Every parameter that can occur.
        optimum: Parameters at which the value is 0.
    """

    space: Mapping[str, BaseDistribution]
    optimum: Mapping[str, Any]

    @abc.abstractmethod
    def __call__(self, trial: BaseTrial) -> float:
        """Return the value of ``trial``, at least 0."""


def sphere(z: Vector) -> float:
    """BBOB f1, optimum at 0."""
    return float(z @ z)


def ellipsoid(z: Vector) -> float:
    """BBOB f2, condition number 1e6, optimum at 0."""
    return float(10.0 ** np.linspace(0, 6, len(z)) @ z**2)


def rosenbrock(z: Vector) -> float:
    """BBOB f8, a curved valley, optimum moved from 1 to 0."""
    z = max(1.0, len(z) ** 0.5 / 8) * z + 1
    return float(np.sum(100 * (z[:-1] ** 2 - z[1:]) ** 2 + (z[:-1] - 1) ** 2))


def rastrigin(z: Vector) -> float:
    """BBOB f3, about 10^d local minima, optimum at 0."""
    return float(10 * (len(z) - np.cos(2 * np.pi * z).sum()) + z @ z)


class Continuous(Instance):
    """A function of ``dims`` floats in [-5, 5], shifted by up to 4 (Rosenbrock: 3)."""

    def __init__(self, function: Callable[[Vector], float], *, dims: int, seed: int) -> None:
        reach = 3.0 if function is rosenbrock else 4.0
        self._function = function
        self._shift = _generator(seed).uniform(-reach, reach, dims)
        self.space = {f"x{i}": FloatDistribution(-5, 5) for i in range(dims)}
        self.optimum = dict(zip(self.space, self._shift.tolist(), strict=True))

    def __call__(self, trial: BaseTrial) -> float:
        x = [trial.suggest_float(name, -5, 5) for name in self.space]
        return self._function(np.asarray(x) - self._shift)


class Mixed(Instance):
    """Squared distances of floats, logs, integers and categories in turn from a random optimum.

    Every parameter costs up to 1. The choices of a category, which are in no order, cost 0, 1/9,
    4/9 and 1.
    """

    _KINDS: tuple[BaseDistribution, ...] = (
        FloatDistribution(-5, 5),
        FloatDistribution(1e-5, 1e-1, log=True),
        IntDistribution(1, 20),
        CategoricalDistribution(("a", "b", "c", "d")),
        IntDistribution(8, 512, log=True),
        FloatDistribution(0, 0.9, step=0.1),
    )

    def __init__(self, *, dims: int, seed: int) -> None:
        rng = _generator(seed)
        self.space = {f"x{i}": self._KINDS[i % len(self._KINDS)] for i in range(dims)}
        self._ranks: dict[str, dict[Any, float]] = {}
        self.optimum = {}
        for name, distribution in self.space.items():
            if isinstance(distribution, CategoricalDistribution):
                order = rng.permutation(np.asarray(distribution.choices)).tolist()
                self._ranks[name] = {choice: j / 3 for j, choice in enumerate(order)}
                self.optimum[name] = order[0]
            else:
                self.optimum[name] = _draw(rng, distribution)

    def __call__(self, trial: BaseTrial) -> float:
        return sum(self._cost(name, suggest(trial, self.space, name)) for name in self.space)

    def _cost(self, name: str, value: Any) -> float:
        if name in self._ranks:
            return self._ranks[name][value] ** 2
        distribution = self.space[name]
        distance = _unit(distribution, value) - _unit(distribution, self.optimum[name])
        return distance**2


class Conditional(Instance):
    """The shape of a network search: the depth decides which widths exist, the optimizer the rest.

    A depth beside the best one costs 0.1 a layer, the wrong optimizer 0.1; every other parameter
    that exists costs its squared distance in the unit cube. ``dims`` is the largest depth.
    """

    def __init__(self, *, dims: int, seed: int) -> None:
        rng = _generator(seed)
        width = IntDistribution(8, 512, log=True)
        self.space = {
            "depth": IntDistribution(1, dims),
            **{f"width{i}": width for i in range(dims)},
            "optimizer": CategoricalDistribution(("sgd", "adam")),
            "lr": FloatDistribution(1e-5, 1e-1, log=True),
            "momentum": FloatDistribution(0, 1),
        }
        best = {
            name: _draw(rng, distribution)
            for name, distribution in self.space.items()
            if not isinstance(distribution, CategoricalDistribution)
        }
        best["optimizer"] = ("sgd", "adam")[rng.integers(2)]
        absent = {f"width{i}" for i in range(best["depth"], dims)}
        if best["optimizer"] == "adam":
            absent.add("momentum")
        self._best = best
        self.optimum = {name: best[name] for name in self.space if name not in absent}

    def __call__(self, trial: BaseTrial) -> float:
        depth = suggest(trial, self.space, "depth")
        optimizer = suggest(trial, self.space, "optimizer")
        rest = [f"width{i}" for i in range(depth)] + ["lr"]
        if optimizer == "sgd":
            rest.append("momentum")
        value: float = 0.1 * abs(depth - self._best["depth"])
        value += 0.1 * (optimizer != self._best["optimizer"])
        for name in rest:
            distribution = self.space[name]
            at = _unit(distribution, suggest(trial, self.space, name))
            value += (at - _unit(distribution, self._best[name])) ** 2
        return value


CONTINUOUS: Mapping[str, Callable[[Vector], float]] = {
    "sphere": sphere,
    "ellipsoid": ellipsoid,
    "rosenbrock": rosenbrock,
    "rastrigin": rastrigin,
}
FUNCTIONS = (*CONTINUOUS, "mixed", "conditional")


def instance(name: str, *, dims: int, seed: int) -> Instance:
    """Return the instance of a function of :data:`FUNCTIONS` that belongs to ``seed``."""
    if name == "mixed":
        return Mixed(dims=dims, seed=seed)
    if name == "conditional":
        return Conditional(dims=dims, seed=seed)
    return Continuous(CONTINUOUS[name], dims=dims, seed=seed)


def _generator(seed: int) -> np.random.Generator:
    # Not default_rng(seed): a sampler with the same seed may start from that very stream, and
    # would draw the optimum.
    return np.random.default_rng((seed, 0x0F77))


def _unit(distribution: Any, value: float) -> float:
    """Return where ``value`` lies between the bounds, 0 to 1, on the scale of the parameter."""
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / max(high - low, 1e-12))  # a single depth lies at 0


def _draw(rng: np.random.Generator, distribution: Any) -> Any:
    """Draw a value uniformly on the scale of the parameter, from those it can take."""
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return round(value) if isinstance(distribution, IntDistribution) else value
    if step is None:
        return float(rng.uniform(low, high))
    level = int(rng.integers(round((high - low) / step) + 1))
    return low + level * step
