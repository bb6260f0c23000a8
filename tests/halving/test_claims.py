from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import bulk_storage
from optuna_ext import open_storage
from optuna_ext import SobolSampler
from optuna_ext import SuccessiveHalving
from optuna_ext._bulk import BulkStorage


def test_a_slow_worker_takes_up_a_later_trial(
    study_of_nine: Any, train_for: Any, check_lineages: Any
) -> None:
    """Its trial was created before the parent was, but looks for one only now."""
    study = study_of_nine(n_trials_per_round=3)
    sampler = study.sampler
    study.sampler = RandomSampler(seed=1)
    slow = study.ask()
    study.sampler = sampler
    training = train_for(9)
    study.optimize(training, n_trials=3)
    sampler.before_trial(study, slow._cached_frozen_trial)
    parent = slow.user_attrs["parent"]
    assert parent in (1, 2, 3)
    study.optimize(training, n_trials=1)
    assert study.trials[4].user_attrs.get("parent") is None
    training.checkpoints[0] = 3
    assert slow.suggest_float("x", 0, 1) == study.trials[parent].params["x"]
    if slow.suggest_categorical("kind", ["plain", "shifted"]) == "shifted":
        slow.suggest_float("shift", 0, 1)
    for epoch in (2, 3):
        slow.report(0.0, epoch)
    study.tell(slow, state=TrialState.PRUNED)
    study.optimize(training, n_trials=20)
    check_lineages(study)


def test_a_claim_gives_way_to_one_that_was_there_before(
    study_of_nine: Any, train_for: Any
) -> None:
    """Another worker claims the same parent between our look and our claim."""
    study = study_of_nine(n_trials_per_round=3)
    study.optimize(train_for(9), n_trials=3)
    rival = study.ask()
    parent = rival.user_attrs["parent"]
    rival_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, 3)
    storage = study._storage
    storage.set_trial_user_attr(rival_id, "parent", None)  # not yet written

    original = storage.set_trial_user_attr
    claims = []

    def write(trial_id: int, key: str, value: Any) -> None:
        original(trial_id, key, value)
        if key == "parent" and trial_id != rival_id:
            claims.append(value)
            if len(claims) == 1:
                original(rival_id, "parent", parent)

    storage.set_trial_user_attr = write
    trial = study.ask()
    assert claims == [parent, None]
    assert trial.user_attrs["parent"] is None
    assert trial.user_attrs["rung"] == 0


def test_bulk_storages_exchange_their_claims(tmp_path: Path, study_of: Any) -> None:
    """They keep back what they write, and do not look for what others wrote, for a while."""
    pairs = [
        SuccessiveHalving(min_resource=1, max_resource=4, base_sampler=RandomSampler(seed=0))
        for _ in range(2)
    ]
    storages = [bulk_storage(tmp_path / "s.db", interval=1000) for _ in pairs]
    studies = [study_of(pair, storage) for pair, storage in zip(pairs, storages, strict=True)]
    newborns = [studies[0].ask() for _ in range(8)]
    for value, trial in enumerate(newborns):
        trial.report(value, 1)
        studies[0].tell(trial, state=TrialState.PRUNED)
    trials = [study.ask() for _ in range(3) for study in studies]
    parents = [trial.user_attrs.get("parent") for trial in trials]
    assert parents == [0, 1, 2, 3, None, None]
    for storage in storages:
        assert isinstance(storage, BulkStorage)
        storage.close()
        storage.backend.engine.dispose()


def _work(url: str, n: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pair = SuccessiveHalving(
        min_resource=1, max_resource=8, reduction_factor=2, base_sampler=SobolSampler(seed=0)
    )
    study = optuna.load_study(
        study_name="halving", storage=open_storage(url), sampler=pair.sampler, pruner=pair.pruner
    )

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        rung = trial.user_attrs["rung"]
        for epoch in range(2**rung // 2 + 1, 9):
            trial.report(x, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=n)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_processes_promote_nobody_twice(
    kind: str, tmp_path: Path, processes: ForkServerContext, check_lineages: Any
) -> None:
    url = f"sqlite:///{tmp_path}/s.db" if kind == "sqlite" else f"journal:{tmp_path}/s.log"
    optuna.create_study(study_name="halving", storage=open_storage(url))
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        list(pool.map(_work, [url] * 3, [12] * 3))
    study = optuna.load_study(study_name="halving", storage=open_storage(url))
    assert len(study.trials) == 36
    check_lineages(study)


def test_threads_promote_nobody_twice(
    study_of_nine: Any, train_for: Any, check_lineages: Any
) -> None:
    study = study_of_nine()
    training = train_for(9)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: study.optimize(training, n_trials=20), range(4)))
    check_lineages(study)
