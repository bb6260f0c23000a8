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
            for number, bracket in enumerate(brackets):
                for rung in range(len(bracket.rungs)):
                    field = [place[-1] for place in ladder.field(number, rung)]
                    scores = {
                        root: climber.scores[rung]
                        for root, climber in fresh.climbers.items()
                        if climber.bracket == number and len(climber.scores) > rung
                    }
                    assert field == ranking(scores)
            for root, climber in fresh.climbers.items():
                assert climber.reports == ladder.climbers[root].reports
                assert climber.scores == ladder.climbers[root].scores
                assert climber.tip.number == ladder.climbers[root].tip.number
