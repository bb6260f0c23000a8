"""What the objective with its own learning rate records, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial
from optuna.trial import TrialState
import pytest

from objectives import hypergradient
from optuna_ext import CheckpointStore
from optuna_ext import Schedule
from optuna_ext.online import recorded


STEPS = 75  # of an epoch of the digits


class Stop(optuna.pruners.BasePruner):
    """Pauses every trial after its first epoch."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 1


def rates(trial: Any) -> Schedule:
    schedule = recorded(trial)
    assert schedule is not None
    return schedule


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_from_a_pause_the_rate_goes_on_where_it_was(optimizer: str, tmp_path: Path) -> None:
    params = {**hypergradient.DEFAULTS, "optimizer": optimizer}
    straight = FixedTrial(params)
    value = hypergradient.objective(straight, epochs=2, device="cpu")
    store = CheckpointStore(":memory:")
    study = optuna.create_study(direction="maximize", pruner=Stop())
    study.enqueue_trial(params)
    study.enqueue_trial(params, user_attrs={"parent": 0})
    study.optimize(
        lambda trial: hypergradient.objective(
            trial, epochs=2, device="cpu", checkpoints=store, artifacts=str(tmp_path)
        ),
        n_trials=2,
    )
    paused, promoted = study.trials
    assert (paused.state, promoted.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert promoted.value == value
    assert rates(paused).last == STEPS
    assert rates(promoted) == rates(straight)  # the steps of its parent, too
    assert rates(promoted).last == 2 * STEPS
    whole = recorded(promoted, place=tmp_path)
    assert whole is not None
    assert len({values["lr"] for _, values in whole}) > STEPS


def test_a_rate_that_stays_is_the_one_that_was_asked_for() -> None:
    trial = FixedTrial({"optimizer": "sgd", "lr": 0.25})
    hypergradient.objective(trial, epochs=1, net="mlp", fixed=True, device="cpu")
    assert rates(trial) == Schedule({1: {"lr": 0.25}}, last=STEPS)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data": "cats"}, "data must be one of .'digits', 'mnist', 'fashion'., but it is 'cats'"),
        ({"net": "cnn"}, "net must be 'logistic' or 'mlp', but it is 'cnn'"),
    ],
)
def test_mistakes(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        hypergradient.objective(FixedTrial(hypergradient.DEFAULTS), **settings)
