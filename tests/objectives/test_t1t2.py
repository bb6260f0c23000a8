"""What the objective with tuned regularization records, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial
from optuna.trial import TrialState
import pytest
import torch

from objectives import t1t2
from optuna_ext.online import check_disjoint
from optuna_ext.online import recorded


class Always(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_a_pruned_trial_has_its_schedule(small_data: Path, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize", pruner=Always())
    study.enqueue_trial({**t1t2.DEFAULTS, "every": 5})
    study.optimize(
        lambda trial: t1t2.objective(
            trial,
            width=0.01,
            epochs=20,
            device="cpu",
            data_dir=small_data,
            artifacts=str(tmp_path / "artifacts"),
        ),
        n_trials=1,
    )
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]
    assert "test_accuracy" not in trial.user_attrs
    schedule, whole = recorded(trial), recorded(trial, place=tmp_path / "artifacts")
    assert schedule is not None
    assert whole is not None
    assert schedule.names == ["l2", "input_noise"]
    assert schedule.last == whole.last > 0
    assert whole.at(1) == pytest.approx({"l2": 1e-4, "input_noise": 0.3})


def test_splits_have_no_image_in_common(small_data: Path) -> None:
    for with_valid in (False, True):
        splits = t1t2.load_splits(
            device=torch.device("cpu"), data_dir=small_data, with_valid=with_valid
        )
        rows = {name: pair[0] for name, pair in vars(splits).items()}
        check_disjoint(**rows)
        assert (len(rows["valid"]) > 0) == with_valid


def test_the_learning_rate_falls_to_zero(small_data: Path) -> None:
    splits = t1t2.load_splits(device=torch.device("cpu"), data_dir=small_data, with_valid=True)
    start = {"l2": 1e-4, "input_noise": 0.3}
    training = t1t2.train(splits, (4,), start=start, epochs=4)
    rates = [training.tuner.optimizer.param_groups[0]["lr"] for _ in training]
    assert rates == pytest.approx([7.5e-4, 5e-4, 2.5e-4, 0.0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"net": "huge"}, "net must be one of .'small', 'medium', 'large'., but it is 'huge'"),
        ({"width": 0.0}, "width must be positive, but it is 0.0"),
    ],
)
def test_mistakes(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        t1t2.objective(FixedTrial(t1t2.DEFAULTS), **settings)
