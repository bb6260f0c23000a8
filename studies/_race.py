"""One sampler on one instance of a problem, timed; and many of these in processes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import as_completed
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
import functools
import math
import multiprocessing
import os
import re
import signal
import time
from typing import Any
import warnings

import numpy as np
import numpy.typing as npt
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial
from optuna.trial import TrialState

from objectives.space import suggest
from studies._catalog import make_sampler
from studies._catalog import parse_assignments
from studies._errors import UserError
from studies._problems import Direction
from studies._problems import find_problem
from studies._problems import Objective
from studies._problems import Problem
from studies._problems import Settings
from studies._scipy_searches import check_search
from studies._scipy_searches import PREFIX
from studies._scipy_searches import search


Vector = npt.NDArray[np.float64]

# Every point at which a study turns to its sampler.
_HOOKS = (
    "before_trial",
    "infer_relative_search_space",
    "sample_relative",
    "sample_independent",
    "after_trial",
)


@dataclass(frozen=True)
class Race:
    """What is compared on what; the same for all of its runs."""

    on: str
    settings: Settings
    n_trials: int
    parallel_trials: int = 1


@dataclass(frozen=True)
class Run:
    """What came of one sampler on one seed.

    Attributes:
        sampler: The sampler as the user named it.
        seed: Seed of the instance and of the sampler.
        values: Value of each trial, shape ``(n_trials,)``; NaN for one that did not complete.
        best: Best value so far, same shape; NaN before the first value.
        wall_s: Seconds the run took.
        sampler_s: Seconds of these spent in the sampler.
    """

    sampler: str
    seed: int
    values: Vector
    best: Vector
    wall_s: float
    sampler_s: float


def named_sampler(text: str, problem: Problem | None, *, seed: int, n_trials: int) -> BaseSampler:
    """Build the sampler that ``NAME`` or ``NAME:key=value,key=value`` stands for.

    Raises:
        UserError: If the name or an argument is wrong.
    """
    # A class is module:Class, so the arguments begin at the first colon before key=.
    name, *arguments = re.split(r":(?=\w+\s*=)", text, maxsplit=1)
    # Only a comma before the next key separates: key=[1, 2] stays whole.
    assignments = [part for texts in arguments for part in re.split(r",(?=\s*\w+\s*=)", texts)]
    return make_sampler(
        name,
        arguments=parse_assignments(f"the arguments of {name!r}", assignments),
        seed=seed,
        n_trials=n_trials,
        search_space=problem.space if problem else None,
    )


def check_sampler(race: Race, sampler: str, problem: Problem) -> None:
    """Refuse a sampler that cannot take part.

    Raises:
        UserError: If its name or an argument is wrong, or the problem is not for it.
    """
    _contestant(race, sampler, problem, seed=0, watch=_Stopwatch())


def run_one(race: Race, sampler: str, seed: int) -> Run:
    """Run one sampler on one seed, in memory.

    Raises:
        UserError: If the problem or the sampler cannot be built or lacks a package.
    """
    problem = find_problem(race.on, race.settings)
    watch = _Stopwatch()
    contestant = _contestant(race, sampler, problem, seed=seed, watch=watch)
    with quiet():
        objective = problem.instance(seed)
        try:
            _warm_up(race, sampler, problem)
            start = time.perf_counter()
            values = contestant(objective)
        except ImportError as error:  # Optuna's samplers import what they need when they sample
            raise UserError(f"sampler {sampler!r}: {' '.join(str(error).split())}") from error
        wall_s = time.perf_counter() - start
    return Run(
        sampler=sampler,
        seed=seed,
        values=values,
        best=incumbents(values, maximize=problem.direction == "maximize"),
        wall_s=wall_s,
        sampler_s=watch.seconds,
    )


def run_all(
    race: Race, samplers: Sequence[str], seeds: Sequence[int], *, workers: int
) -> Iterator[Run]:
    """Yield the runs of all samplers on all seeds, as they end, from ``workers`` processes."""
    tasks = [(sampler, seed) for seed in seeds for sampler in samplers]
    if workers == 1:
        yield from (run_one(race, *task) for task in tasks)
        return
    # Processes share the cores: one thread in each, set before they import numpy or torch.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    context = multiprocessing.get_context("spawn")
    # Ctrl-C ends a worker without a word: the parent has it, too, and says what there is to say.
    with ProcessPoolExecutor(
        workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        runs = [pool.submit(run_one, race, *task) for task in tasks]
        try:
            yield from (run.result() for run in as_completed(runs))
        except BaseException:  # Ctrl-C for the parent alone, say: do not wait for the others
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def incumbents(values: Vector, *, maximize: bool) -> Vector:
    """Return the best value so far at every trial; NaN before the first value."""
    # fmax and fmin ignore NaN wherever they can.
    return (np.fmax if maximize else np.fmin).accumulate(values)


def _contestant(
    race: Race, sampler: str, problem: Problem, *, seed: int, watch: _Stopwatch
) -> Callable[[Objective], Vector]:
    """Return what tries a sampler on an objective and gives the values of its trials."""
    if not sampler.startswith(PREFIX):
        built = named_sampler(sampler, problem, seed=seed, n_trials=race.n_trials)
        for hook in _HOOKS:
            setattr(built, hook, watch.timed(getattr(built, hook)))
        return functools.partial(_study_values, race, problem.direction, built, seed)
    space = check_search(sampler, problem, parallel_trials=race.parallel_trials)
    timed_search = watch.timed(search)

    def values(objective: Objective) -> Vector:
        def value(trial: BaseTrial) -> float:
            _, value = _evaluate(objective, trial)
            return math.nan if value is None else value

        found: Vector = timed_search(
            sampler,
            watch.untimed(value),
            space,
            maximize=problem.direction == "maximize",
            n_trials=race.n_trials,
            seed=seed,
        )
        return found

    return values


def _warm_up(race: Race, sampler: str, problem: Problem) -> None:
    """Let a sampler import what it needs, which its first run shall not be charged with."""
    if sampler.startswith(PREFIX):
        return
    space = dict(problem.space or {})

    def objective(trial: optuna.Trial) -> float:
        for name in space:
            suggest(trial, space, name)
        return 0.0

    built = named_sampler(sampler, problem, seed=0, n_trials=race.n_trials)
    optuna.create_study(sampler=built).optimize(objective, n_trials=1)


class _Stopwatch:
    """Adds up the time spent in the functions it wraps; a call within a call counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._running = False

        return wrapper

    def untimed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Leave ``function`` out where a timed one calls it."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds -= time.perf_counter() - start

        return wrapper


def _study_values(
    race: Race, direction: Direction, sampler: BaseSampler, seed: int, objective: Objective
) -> Vector:
    """Return the value of each trial, asked for and told in batches of ``parallel_trials``."""
    study = optuna.create_study(
        study_name=f"{race.on}-{seed}",
        direction=direction,
        sampler=sampler,
        pruner=optuna.pruners.NopPruner(),
    )
    values = np.full(race.n_trials, math.nan)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True

    # Samplers of finite grids stop the study; outside of optimize() Optuna's own stop() raises.
    study.stop = stop  # type: ignore[method-assign]
    for first in range(0, race.n_trials, race.parallel_trials):
        batch = range(first, min(first + race.parallel_trials, race.n_trials))
        # All are asked for before the first is told: nobody knows the result of a neighbor.
        results = [(trial, *_evaluate(objective, trial)) for trial in [study.ask() for _ in batch]]
        for number, (trial, state, value) in zip(batch, results, strict=True):
            study.tell(trial, value, state=state)
            values[number] = math.nan if value is None else value
        if stopped:
            break
    return values


def _evaluate(objective: Objective, trial: BaseTrial) -> tuple[TrialState, float | None]:
    try:
        value = float(objective(trial))
    except optuna.TrialPruned:
        return TrialState.PRUNED, None
    if math.isnan(value):
        return TrialState.FAIL, None
    return TrialState.COMPLETE, value


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines per trial and its warnings about experimental classes."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
