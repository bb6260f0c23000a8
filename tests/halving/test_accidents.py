from __future__ import annotations

import math
from random import Random
from typing import Any

from optuna.samplers import RandomSampler
from optuna.trial import Trial
from optuna.trial import TrialState
import pytest

from optuna_ext import Hyperband
from optuna_ext import SuccessiveHalving


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_trials(seed: int, study_of: Any) -> None:
    """Four workers take turns at random; trials fail, diverge or are given up at any epoch."""
    rng = Random(seed)
    first_step = rng.choice([0, 1])
    pair = rng.choice([SuccessiveHalving, Hyperband])(
        max_resource=rng.choice([3, 8, 10]),
        reduction_factor=rng.choice([2, 3]),
        synchronous=rng.choice([False, True]),
        first_step=first_step,
        base_sampler=RandomSampler(seed=seed),
    )
    end = pair.plan.brackets[0].rungs[-1]
    study = study_of(pair)
    working: list[Trial] = []
    reached: dict[int, int] = {}
    for _ in range(250):
        if len(working) < 4:
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            reached[trial.number] = reached.get(trial.user_attrs.get("parent"), 0)
            working.append(trial)
            continue
        trial = working.pop(rng.randrange(4))
        event = rng.random()
        if event < 0.1:
            study.tell(trial, state=TrialState.FAIL if event < 0.05 else TrialState.PRUNED)
            continue
        reached[trial.number] += 1
        epoch = reached[trial.number]
        value = math.nan if event < 0.15 else trial.params["x"] + 1 / epoch
        trial.report(value, epoch - 1 + first_step)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        elif epoch == end:
            study.tell(trial, trial.params["x"])
        else:
            working.append(trial)

    trials = study.get_trials()
    n_promotions = 0
    for parent in trials:
        children = [t for t in trials if t.user_attrs.get("parent") == parent.number]
        n_promotions += len(children)
        if children:
            rungs = pair.plan.brackets[parent.user_attrs.get("bracket", 0)].rungs
            assert reached[parent.number] == rungs[parent.user_attrs["rung"]]
            assert parent.state == TrialState.PRUNED
            assert not math.isnan(parent.intermediate_values[max(parent.intermediate_values)])
            assert all(child.params == parent.params for child in children)
            assert sum(child.state != TrialState.FAIL for child in children) <= 1
            assert len(children) <= 3
    assert n_promotions
