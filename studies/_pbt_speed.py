"""The same population on MNIST: a loop written by hand, a study of ours, and Ray Tune.

A convolutional network, a few steps of SGD per interval, the worst fifth copies the best fifth
after every interval. What is timed begins with the end of the first interval, when everything has
been started and loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from dataclasses import dataclass
import functools
import logging
import os
from pathlib import Path
import tempfile
import threading
import time
from typing import Any

import numpy as np
import optuna
from optuna.pruners import NopPruner
from optuna.trial import Trial
import torch
from torch import nn
from torch import Tensor
from torch.nn import functional as F

from objectives.data import load
from objectives.nets import lenet
from objectives.nets import seeded
from optuna_ext import bulk_storage
from optuna_ext import CheckpointStore
from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import sqlite


_LR = 1e-4, 1.0
_MOMENTUM = 0.0, 0.95
_FRACTION = 0.2
_TRAIN = 10_000  # images
_BATCH = 32


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        members: Members of the population.
        intervals: Of every member.
        steps: Of an interval, on 32 images each.
        images: On which a member is measured after an interval.
        workers: Threads of a study; Ray Tune has as many CPUs, the plain loop is one.
        data_dir: Where MNIST is; None for ``$OPTUNA_EXT_DATA``.
    """

    members: int
    intervals: int
    steps: int
    images: int
    workers: int
    data_dir: Path | None


@dataclass(frozen=True)
class Timing:
    """What came of a contestant.

    Attributes:
        contestant: Its name.
        seed: Seed of the search and of the first weights.
        intervals_per_second: After the first interval.
        cpu_per_interval: Seconds of this process, likewise; NaN where others work.
        accuracy: Of the best member after the last interval, on the validation images.
    """

    contestant: str
    seed: int
    intervals_per_second: float
    cpu_per_interval: float
    accuracy: float


class Member:
    """A network in training."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self._setting = setting
        self.generator = torch.Generator().manual_seed(seed)
        with seeded(seed):
            self.model: nn.Module = lenet(channels=(8, 16), hidden=(64,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def set(self, params: Mapping[str, float]) -> None:
        """Use other hyperparameters from now on."""
        for group in self.optimizer.param_groups:
            group.update(params)

    def train(self) -> float:
        """Train an interval; return the accuracy on the validation images."""
        train_x, train_y, valid_x, valid_y = _data(self._setting.data_dir)
        valid_x, valid_y = valid_x[: self._setting.images], valid_y[: self._setting.images]
        for _ in range(self._setting.steps):
            rows = torch.randint(_TRAIN, (_BATCH,), generator=self.generator)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(train_x[rows]), train_y[rows]).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        with torch.no_grad():
            hits = self.model(valid_x).argmax(1) == valid_y
            return float(hits.float().mean())

    def state(self) -> dict[str, Any]:
        """Return everything that changes in training."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from another state, with its hyperparameters."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


@functools.cache
def _data(data_dir: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load("mnist", data_dir=data_dir)
    return (
        data.train_x[:_TRAIN],
        data.train_y[:_TRAIN],
        data.valid_x,
        data.valid_y,
    )


class _Clock:
    """Times intervals from the end of the first one on."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def tick(self) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    def timing(self, contestant: str, seed: int, accuracy: float) -> Timing:
        n = len(self._ends) - 1
        wall, cpu = (b - a for a, b in zip(self._ends[0], self._ends[-1], strict=True))
        return Timing(contestant, seed, n / wall, cpu / n, accuracy)


def plain_loop(setting: Setting, seed: int) -> Timing:
    """Train a population with nothing but torch: in memory, and lost if it stops."""
    rng = np.random.default_rng(seed)
    members = [Member(setting, 1000 * seed + i) for i in range(setting.members)]
    params = [_draw(rng) for _ in members]
    n_replaced = int(np.ceil(_FRACTION * setting.members))
    values = [0.0] * setting.members
    clock = _Clock()
    for interval in range(setting.intervals):
        if interval:
            ranking = np.argsort(values)
            for loser in ranking[:n_replaced]:
                winner = rng.choice(ranking[-n_replaced:])
                members[loser].restore(copy.deepcopy(members[winner].state()))
                params[loser] = _perturb(params[winner], rng)
        for i, member in enumerate(members):
            member.set(params[i])
            values[i] = member.train()
            clock.tick()
    return clock.timing("plain loop", seed, max(values))


def _draw(rng: np.random.Generator) -> dict[str, float]:
    lr = float(np.exp(rng.uniform(*np.log(_LR))))
    return {"lr": lr, "momentum": float(rng.uniform(*_MOMENTUM))}


def _perturb(params: Mapping[str, float], rng: np.random.Generator) -> dict[str, float]:
    new = {name: value * rng.choice([0.5, 2.0]) for name, value in params.items()}
    new = {name: v if rng.random() < 0.75 else _draw(rng)[name] for name, v in new.items()}
    return {
        "lr": float(np.clip(new["lr"], *_LR)),
        "momentum": float(np.clip(new["momentum"], *_MOMENTUM)),
    }


def study_in_memory(setting: Setting, seed: int) -> Timing:
    """Train a population as a study that is not kept, as the plain loop does."""
    timing = _study(setting, seed, optuna.storages.InMemoryStorage(), CheckpointStore(":memory:"))
    return timing("study in memory", seed)


def study_on_disk(setting: Setting, seed: int) -> Timing:
    """Train a population as a study that survives a crash at any moment."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder, "checkpoints"))
        timing = _study(setting, seed, sqlite(Path(folder, "study.db")), store)
        return timing("study on disk", seed)


def study_in_bulk(setting: Setting, seed: int) -> Timing:
    """Train likewise, but let SQLite wait for the end of an interval with all that it reported."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder, "checkpoints"))
        storage: Any = bulk_storage(Path(folder, "study.db"))
        with storage:  # whose thread writes
            return _study(setting, seed, storage, store)("study in bulk", seed)


def _study(
    setting: Setting, seed: int, storage: optuna.storages.BaseStorage, store: CheckpointStore
) -> Callable[[str, int], Timing]:
    clock = _Clock()
    thread = threading.local()  # builds a network once, as an actor of Ray does

    def objective(trial: Trial) -> float:
        lr = trial.suggest_float("lr", *_LR, log=True)
        momentum = trial.suggest_float("momentum", *_MOMENTUM)
        if "parent" not in trial.user_attrs or not hasattr(thread, "member"):
            thread.member = Member(setting, 1000 * seed + trial.number)
        member: Member = thread.member
        member.set({"lr": lr, "momentum": momentum})
        run = store.resume(
            trial, model=member.model, optimizer=member.optimizer, generator=member.generator
        )
        value = member.train()
        run.save(run.step + 1)
        return value

    study = optuna.create_study(
        direction="maximize",
        storage=storage,
        sampler=PopulationBasedTrainingSampler(population_size=setting.members, seed=seed),
        pruner=NopPruner(),
    )
    n_trials = setting.members * setting.intervals
    study.optimize(
        objective, n_trials, n_jobs=setting.workers, callbacks=[lambda *_: clock.tick()]
    )
    accuracy = max(t.value or 0.0 for t in study.trials[-setting.members :])
    return lambda name, seed: clock.timing(name, seed, accuracy)


def ray_tune(setting: Setting, seed: int) -> Timing:
    """Train a population with Ray Tune, its actors being used again."""
    import ray
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    class Trainable(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            torch.set_num_threads(1)
            self.member = Member(setting, 1000 * seed + config["number"])
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.params = {name: new_config[name] for name in ("lr", "momentum")}
            self.member.set(self.params)
            return True

        def step(self) -> dict[str, float]:
            accuracy = self.member.train()
            return {"accuracy": accuracy, "end": time.time()}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            torch.save(self.member.state(), Path(checkpoint_dir, "state.pt"))

        def load_checkpoint(self, checkpoint: str) -> None:
            self.member.restore(torch.load(Path(checkpoint, "state.pt"), weights_only=True))
            self.member.set(self.params)  # which loading the optimizer has undone

    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        quantile_fraction=_FRACTION,
        perturbation_factors=(2.0, 0.5),
        hyperparam_mutations={
            "lr": tune.loguniform(*_LR),
            "momentum": tune.uniform(*_MOMENTUM),
        },
    )
    space = {
        "lr": tune.loguniform(*_LR),
        "momentum": tune.uniform(*_MOMENTUM),
        "number": tune.grid_search(list(range(setting.members))),
    }
    _keep_quiet()
    ray.init(
        num_cpus=setting.workers,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_search_path())}},
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = tune.Tuner(
                Trainable,
                param_space=space,
                tune_config=tune.TuneConfig(
                    metric="accuracy", mode="max", scheduler=scheduler, reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    stop={"training_iteration": setting.intervals},
                    storage_path=folder,
                    verbose=0,
                ),
            ).fit()
            return _ray_timing(results, seed)
    finally:
        ray.shutdown()


def _keep_quiet() -> None:
    """Let Ray print nothing but errors; it reads this when it starts."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray").setLevel(logging.ERROR)


def _search_path() -> Sequence[str]:
    """Return where the workers find this module."""
    return [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


def _ray_timing(results: Any, seed: int) -> Timing:
    ends = sorted(end for result in results for end in result.metrics_dataframe["end"])
    return Timing(
        contestant="Ray Tune",
        seed=seed,
        intervals_per_second=(len(ends) - 1) / (ends[-1] - ends[0]),
        cpu_per_interval=float("nan"),
        accuracy=max(result.metrics["accuracy"] for result in results),
    )


CONTESTANTS: dict[str, Callable[[Setting, int], Timing]] = {
    "plain loop": plain_loop,
    "study in memory": study_in_memory,
    "study on disk": study_on_disk,
    "study in bulk": study_in_bulk,
    "Ray Tune": ray_tune,
}


def run_all(setting: Setting, seeds: Sequence[int], names: Sequence[str]) -> Iterator[Timing]:
    """Yield the timings of all contestants, seed by seed, so that all meet the same machine."""
    _data(setting.data_dir)
    for seed in seeds:
        for name in names:
            yield CONTESTANTS[name](setting, seed)
