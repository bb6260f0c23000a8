"""Samplers and pruners by the short names of the command line."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
import importlib
import inspect
import types
from typing import Any
import warnings

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution
from optuna.distributions import IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from studies._errors import unknown
from studies._errors import UserError


SAMPLERS = {
    "sobol": "optuna_ext.samplers:SobolSampler",
    "halton": "optuna_ext.samplers:HaltonSampler",
    "hammersley": "optuna_ext.samplers:HammersleySampler",
    "lhs": "optuna_ext.samplers:LatinHypercubeSampler",
    "poisson": "optuna_ext.samplers:PoissonDiskSampler",
    "approximate-gradient": "optuna_ext.samplers:ApproximateGradientSampler",
    "evolutionary": "optuna_ext.samplers:EvolutionarySampler",
    "nelder-mead": "optuna_ext.samplers:NelderMeadSampler",
    "pbt": "optuna_ext.samplers:PopulationBasedTrainingSampler",
    "particle-swarm": "optuna_ext.samplers:ParticleSwarmSampler",
    "warmup": "optuna_ext.samplers:WarmupSampler",
    "random": "optuna.samplers:RandomSampler",
    "tpe": "optuna.samplers:TPESampler",
    "gp": "optuna.samplers:GPSampler",
    "cmaes": "optuna.samplers:CmaEsSampler",
    "nsga2": "optuna.samplers:NSGAIISampler",
    "nsga3": "optuna.samplers:NSGAIIISampler",
    "qmc": "optuna.samplers:QMCSampler",
    "grid": "optuna.samplers:GridSampler",
    "brute-force": "optuna.samplers:BruteForceSampler",
    "partial-fixed": "optuna.samplers:PartialFixedSampler",
}

# Samplers that come with a pruner of their own: objects with the attributes sampler and pruner.
PAIRS = {
    "halving": "optuna_ext.halving:SuccessiveHalving",
    "hyperband": "optuna_ext.halving:Hyperband",
}

PRUNERS = {
    "none": "optuna.pruners:NopPruner",
    "median": "optuna.pruners:MedianPruner",
    "percentile": "optuna.pruners:PercentilePruner",
    "sha": "optuna.pruners:SuccessiveHalvingPruner",
    "hyperband": "optuna.pruners:HyperbandPruner",
    "patient": "optuna.pruners:PatientPruner",
    "threshold": "optuna.pruners:ThresholdPruner",
    "wilcoxon": "optuna.pruners:WilcoxonPruner",
}

# Arguments that are samplers or pruners themselves, so that `--sampler-arg first=sobol` works.
_NESTED_SAMPLERS = {
    "first",
    "then",
    "startup_sampler",
    "base_sampler",
    "independent_sampler",
    "initial_population",
}
_NESTED_PRUNERS = {"wrapped_pruner"}

# Optuna's samplers whose points are numbered: every process must be given the same seed.
_SEED_IS_SHARED = {"QMCSampler", "GridSampler"}

_NEED_FINITE_SPACE = {"grid", "brute-force"}

_SIMPLE_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (types.NoneType,),
}


def make_sampler(
    name: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    seed: int | None = None,
    stream: int = 0,
    n_trials: int | None = None,
    search_space: Mapping[str, BaseDistribution] | None = None,
) -> BaseSampler:
    """Build a sampler from its short name or ``module:Class``.

    What the user leaves out is filled in where the class has such an argument: ``seed``,
    ``n_points`` (the size of a finite design) and ``search_space``.

    Args:
        name: A key of :data:`SAMPLERS` or ``module:Class``.
        arguments: Keyword arguments of the class. Those that are samplers themselves may be given
            by name, such as ``{"first": "sobol", "n": 8, "then": "tpe"}`` for ``warmup``.
        seed: Seed; ``None`` leaves the choice to the sampler.
        stream: Tells apart processes with the same seed, and a resumed process from the first.
            Samplers that draw random numbers as they go get a different seed in each stream, or
            they would repeat each other's points; designs get the same seed in all.
        n_trials: Size of a finite design.
        search_space: The objective's parameters, if it publishes them.

    Returns:
        A new sampler.

    Raises:
        UserError: If the name or an argument is wrong, or the sampler's package is not installed.
    """
    cls = _load_class("sampler", name, SAMPLERS, BaseSampler)
    about = _About(seed=seed, stream=stream, n_trials=n_trials, search_space=search_space)
    sampler: BaseSampler = _build("sampler", name, cls, about.fill(name, cls, arguments or {}))
    return sampler


def make_pair(
    name: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    seed: int | None = None,
    stream: int = 0,
    n_trials: int | None = None,
    search_space: Mapping[str, BaseDistribution] | None = None,
) -> tuple[BaseSampler, BasePruner]:
    """Build a sampler and the pruner that belongs to it.

    Args:
        name: A key of :data:`PAIRS`.
        arguments: As for :func:`make_sampler`.
        seed: As for :func:`make_sampler`.
        stream: As for :func:`make_sampler`.
        n_trials: As for :func:`make_sampler`.
        search_space: As for :func:`make_sampler`.

    Raises:
        UserError: If an argument is wrong.
    """
    cls = _load_class("sampler", name, PAIRS, object)
    about = _About(seed=seed, stream=stream, n_trials=n_trials, search_space=search_space)
    pair = _build("sampler", name, cls, about.fill(name, cls, arguments or {}))
    return pair.sampler, pair.pruner


@dataclass(frozen=True, kw_only=True)
class _About:
    """What fills in the arguments that the user leaves out."""

    seed: int | None
    stream: int
    n_trials: int | None
    search_space: Mapping[str, BaseDistribution] | None

    def fill(self, name: str, cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(arguments)
        for key in _NESTED_SAMPLERS & given.keys():
            if isinstance(given[key], str):
                given[key] = make_sampler(given[key], **vars(self))
        accepted = inspect.signature(cls).parameters
        if "seed" in accepted and self.seed is not None:
            given.setdefault("seed", _stream_seed(cls, self.seed, self.stream))
        if "n_points" in accepted and self.n_trials is not None and given.get("radius") is None:
            given.setdefault("n_points", self.n_trials)
        if self.search_space is not None and "search_space" not in given:
            if name in _NEED_FINITE_SPACE:
                _refuse_continuous(name, self.search_space)
            if "search_space" in accepted:
                space = self.search_space
                given["search_space"] = _grid(space) if name == "grid" else dict(space)
        return given


def make_pruner(name: str, *, arguments: Mapping[str, Any] | None = None) -> BasePruner:
    """Build a pruner from its short name or ``module:Class``.

    Args:
        name: A key of :data:`PRUNERS` or ``module:Class``.
        arguments: Keyword arguments of the class; the pruner that ``patient`` wraps is given by
            name, and is none by default.

    Returns:
        A new pruner.

    Raises:
        UserError: If the name or an argument is wrong.
    """
    cls = _load_class("pruner", name, PRUNERS, BasePruner)
    given = dict(arguments or {})
    if name == "patient":
        given.setdefault("wrapped_pruner", None)
    for key in _NESTED_PRUNERS & given.keys():
        if isinstance(given[key], str):
            given[key] = make_pruner(given[key])
    pruner: BasePruner = _build("pruner", name, cls, given)
    return pruner


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return ``{key: value}`` of ``key=value`` texts; values are Python literals, or else texts.

    Raises:
        UserError: If a text has no ``=`` or a key comes twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{option} must look like name=value, not {text!r}")
        if key in values:
            raise UserError(f"{option} {key!r} is given twice")
        try:
            values[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            values[key] = value
    return values


def _load_class(kind: str, name: str, known: Mapping[str, str], base: type) -> type[Any]:
    if name not in known and ":" not in name:
        pairs = PAIRS if kind == "sampler" else ()
        raise unknown(kind, name, [*known, *pairs, "module:Class"])
    module_name, _, class_name = known.get(name, name).partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {kind} {name!r}: {_sentence(error)}") from error
    except AttributeError as error:
        raise UserError(f"module {module_name!r} has no class {class_name!r}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{kind} {name!r} must be a subclass of optuna's {base.__name__}")
    return cls


def _build(kind: str, name: str, cls: type[Any], arguments: Mapping[str, Any]) -> Any:
    option = f"--{kind}-arg"
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in arguments.items():
        if key in parameters:
            annotation = _annotation(parameters[key])
            if not _fits(value, annotation):
                raise UserError(f"{option} {key} of {name!r} must be {annotation}, not {value!r}")
        elif not takes_any:
            raise unknown(option, key, parameters, where=f"of {name!r}")
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.name not in arguments and p.kind not in _VARIADIC
    ]
    if missing:
        raise UserError(f"{kind} {name!r} needs {option} {'=... and '.join(missing)}=...")
    try:
        with warnings.catch_warnings():
            # Whoever asks for an experimental class by name knows that it is one.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return cls(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{kind} {name!r}: {_sentence(error)}") from error


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _annotation(parameter: inspect.Parameter) -> str:
    if isinstance(parameter.annotation, str):
        return parameter.annotation
    return inspect.formatannotation(parameter.annotation)


def _fits(value: object, annotation: str) -> bool:
    """Whether ``value`` fits an annotation of simple types; anything fits another annotation."""
    names = [part.strip() for part in annotation.split("|")]
    if not set(names) <= _SIMPLE_TYPES.keys():
        return True
    if isinstance(value, bool):  # bool is an int to Python, not to whoever types --sampler-arg
        return "bool" in names
    return isinstance(value, tuple(t for name in names for t in _SIMPLE_TYPES[name]))


def _stream_seed(cls: type, seed: int, stream: int) -> int:
    shared = cls.__module__.startswith("optuna_ext.samplers.") or cls.__name__ in _SEED_IS_SHARED
    if shared or stream == 0:
        return seed
    return int(np.random.SeedSequence((seed, stream)).generate_state(1)[0])


def _refuse_continuous(name: str, search_space: Mapping[str, BaseDistribution]) -> None:
    for parameter, distribution in search_space.items():
        if isinstance(distribution, FloatDistribution) and not (
            distribution.step is not None or distribution.single()
        ):
            raise UserError(
                f"sampler {name!r} needs a finite search space, but parameter {parameter!r} of "
                "the objective is continuous"
            )


def _grid(search_space: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """Return every value of a finite search space."""
    grid: dict[str, list[Any]] = {}
    for name, distribution in search_space.items():
        match distribution:
            case CategoricalDistribution(choices=choices):
                grid[name] = list(choices)
            case IntDistribution(low=low, high=high, step=step):
                grid[name] = list(range(low, high + 1, step))
            case FloatDistribution(low=low, high=high, step=step):
                n = 1 if step is None else round((high - low) / step) + 1
                grid[name] = [low + i * (step or 0.0) for i in range(n)]
    return grid


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
