from __future__ import annotations

from typing import Any

import optuna
from optuna.study import Study
import pytest

from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import Interval
from optuna_ext.lineage import lineage
from optuna_ext.lineage import PARENT
from optuna_ext.lineage import parent_of
from optuna_ext.lineage import RESUMED
from optuna_ext.lineage import schedule


LR: dict[str, optuna.distributions.BaseDistribution] = {
    "lr": optuna.distributions.FloatDistribution(0, 1)
}


def add(study: Study, lr: float, *, step: int | None = None, **attributes: Any) -> int:
    if step is not None:
        attributes[CHECKPOINT] = {"artifact": "a", "step": step, "size": 1, "sha256": "0"}
    study.add_trial(
        optuna.create_trial(params={"lr": lr}, distributions=LR, value=0.0, user_attrs=attributes)
    )
    return len(study.trials) - 1


@pytest.fixture
def study() -> Study:
    return optuna.create_study()


def ranges(study: Study, number: int) -> list[tuple[int, range]]:
    return [(part.trial, part.steps) for part in lineage(study, number)]


def test_from_birth_to_the_trial(study: Study) -> None:
    add(study, 0.1, step=5)
    add(study, 0.2, step=8)
    add(study, 0.3, step=10, **{PARENT: 0})
    add(study, 0.4, step=15, **{PARENT: 2})
    assert lineage(study, 3) == [
        Interval(trial=0, steps=range(1, 6), params={"lr": 0.1}),
        Interval(trial=2, steps=range(6, 11), params={"lr": 0.3}),
        Interval(trial=3, steps=range(11, 16), params={"lr": 0.4}),
    ]
    assert lineage(study, study.trials[3]) == lineage(study, 3)
    assert ranges(study, 1) == [(1, range(1, 9))]


def test_an_ancestor_ends_where_its_child_went_on(study: Study) -> None:
    """Which may be an older checkpoint, and an older ancestor, than the newest."""
    add(study, 0.1, step=10)
    add(study, 0.2, step=20, **{PARENT: 0, RESUMED: {"trial": 0, "step": 7}})
    add(study, 0.3, step=12, **{PARENT: 1, RESUMED: {"trial": 0, "step": 9}})
    assert ranges(study, 1) == [(0, range(1, 8)), (1, range(8, 21))]
    assert ranges(study, 2) == [(0, range(1, 10)), (2, range(10, 13))]


def test_reports_count_as_steps_where_nothing_was_saved(study: Study) -> None:
    add(study, 0.1, step=4)
    study.enqueue_trial({"lr": 0.5}, user_attrs={PARENT: 0})
    trial = study.ask(LR)
    assert ranges(study, 1) == [(0, range(1, 5)), (1, range(5, 5))]
    trial.report(1.0, 7)
    assert ranges(study, 1)[1] == (1, range(5, 8))
    assert lineage(study, trial) == lineage(study, 1)


def test_what_cannot_be_followed(study: Study) -> None:
    add(study, 0.1, step=4, **{PARENT: 1})
    add(study, 0.1, step=4, **{PARENT: 0})
    add(study, 0.1, step=4, **{PARENT: 9})
    with pytest.raises(ValueError, match="trial 0 is its own ancestor: check the `parent`"):
        lineage(study, 0)
    with pytest.raises(ValueError, match="the study has no trial 9"):
        lineage(study, 2)
    with pytest.raises(ValueError, match="the study has no trial 3"):
        lineage(study, 3)


def test_a_schedule_has_the_values_of_every_step(study: Study) -> None:
    add(study, 0.1, step=5)
    add(study, 0.3, step=5, **{PARENT: 0})  # trained nothing
    add(study, 0.4, step=9, **{PARENT: 1})
    told = schedule(study, 2)
    assert [told.at(step)["lr"] for step in range(1, 10)] == [0.1] * 5 + [0.4] * 4
    assert told.last == 9
    add(study, 0.4)
    with pytest.raises(ValueError, match="trial 3 has trained no step, so there is no schedule"):
        schedule(study, 3)


def test_attributes_of_others_are_no_checkpoints(study: Study) -> None:
    values: list[Any] = ["model.pt", None, {"step": 3}, {"artifact": 1, "step": 1, "size": 1}]
    for value in values:
        attributes: dict[str, Any] = {CHECKPOINT: value, PARENT: "Ann"}
        add(study, 0.1, **attributes)
    assert [Checkpoint.of(trial) for trial in study.trials] == [None] * 4
    assert [parent_of(trial) for trial in study.trials] == [None] * 4


def test_a_checkpoint_is_what_its_dict_says() -> None:
    old = Checkpoint(artifact="a", step=1, size=2, sha256="x")
    new = Checkpoint(artifact="b", step=3, size=4, sha256="y", previous=old)
    assert Checkpoint.from_dict(new.to_dict()) == new
