"""Searches over a table of learning curves, by many workers, in a time that does not pass."""

from __future__ import annotations

from dataclasses import dataclass
import heapq

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial
from optuna.trial import TrialState

from optuna_ext.lineage import parent_of
from studies._curve_table import CurveTable
from studies._curve_table import Floats
from studies._curve_table import Pool


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """What came out of one search.

    Args:
        time: When each whole training ended, in epochs of one worker.
        epochs: How many epochs all workers together had trained by then.
        config: Which configuration it was.
        n_started: How many configurations were begun.
        n_epochs: How many epochs were trained in all.
    """

    time: Floats
    epochs: Floats
    config: np.ndarray
    n_started: int
    n_epochs: int


@dataclass(eq=False)
class _Job:
    """A trial of a worker."""

    trial: Trial
    config: int
    epoch: int = 0


def search(
    table: CurveTable,
    sampler: BaseSampler,
    pruner: BasePruner,
    *,
    workers: int,
    max_epochs: int | None = None,
    seed: int | None = None,
) -> Search:
    """Run asynchronous workers until every configuration of the table was begun.

    Every epoch takes one unit of time. A trial with the user attribute ``parent`` goes on where
    that trial was paused.

    Args:
        table: The learning curves.
        sampler: Any sampler.
        pruner: Any pruner.
        workers: How many trials run at the same time.
        max_epochs: Begin nothing any more when so many epochs were trained.
        seed: Of configurations drawn at random; None to get those nearest to what the sampler
            proposes.
    """
    study = optuna.create_study(
        direction="maximize" if table.maximize else "minimize", sampler=sampler, pruner=pruner
    )
    pool = Pool(table, seed=seed)
    paused: dict[int, tuple[int, int]] = {}  # trial number -> configuration and epoch
    ends: list[tuple[float, int, int]] = []  # time, epochs and configuration
    queue: list[tuple[float, int, _Job]] = []
    spent = 0

    def start(now: float, worker: int) -> None:
        if max_epochs is not None and spent >= max_epochs:
            return
        trial = study.ask()
        parent = parent_of(study.get_trials(deepcopy=False)[trial.number])
        if parent is not None:
            config, epoch = paused[parent]
        elif len(pool):
            config, epoch = pool.take(trial), 0
        else:
            study.tell(trial, state=TrialState.FAIL)
            return
        heapq.heappush(queue, (now + 1, worker, _Job(trial, config, epoch)))

    for worker in range(workers):
        start(0.0, worker)
    while queue:
        now, worker, job = heapq.heappop(queue)
        job.epoch += 1
        spent += 1
        value = float(table.curves[job.config, job.epoch - 1])
        job.trial.report(value, job.epoch)
        if job.epoch == table.n_epochs:
            study.tell(job.trial, value, skip_if_finished=False)
            ends.append((now, spent, job.config))
        elif job.trial.should_prune():
            paused[job.trial.number] = job.config, job.epoch
            study.tell(job.trial, state=TrialState.PRUNED)
        else:
            heapq.heappush(queue, (now + 1, worker, job))
            continue
        start(now, worker)
    time, epochs, config = np.array(ends, dtype=float).reshape(-1, 3).T
    return Search(
        time=time,
        epochs=epochs,
        config=config.astype(int),
        n_started=len(table.params) - len(pool),
        n_epochs=spent,
    )
