from __future__ import annotations

from typing import Any

from optuna.samplers import RandomSampler

from optuna_ext import Hyperband
from optuna_ext.ladder import Ladder
from optuna_ext.rungs import ranking


def test_the_ladder_is_the_same_read_at_once_or_step_by_step(
    study_of: Any, train_for: Any
) -> None:
    pair = Hyperband(max_resource=9, reduction_factor=3, base_sampler=RandomSampler(seed=0))
    study = study_of(pair)
    brackets = pair.plan.brackets

    def new() -> Ladder:
        return Ladder(brackets, first_step=1, best_so_far=True, maximize=False)

    ladder = new()
    training = train_for(9)
    for i in range(40):
        study.optimize(training, n_trials=1)
        if i % 3 == 0:
            ladder.update(study.get_trials())
            fresh = new()
            fresh.update(study.get_trials())
            assert fresh.climbers.keys() == ladder.climbers.keys()
            for rung in brackets[0].rungs:
                field = [place[-1] for place in ladder.field(rung)]
                scores = {
                    root: dict(zip(brackets[climber.bracket].rungs, climber.scores, strict=False))
                    for root, climber in fresh.climbers.items()
                }
                assert field == ranking({n: s[rung] for n, s in scores.items() if rung in s})
            for root, climber in fresh.climbers.items():
                assert climber.reports == ladder.climbers[root].reports
                assert climber.scores == ladder.climbers[root].scores
                assert climber.tip.number == ladder.climbers[root].tip.number
