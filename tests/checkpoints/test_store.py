"""A trial goes on from the right checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from typing import TYPE_CHECKING

import optuna
from optuna.study import Study
from optuna.trial import FixedTrial
from optuna.trial import FrozenTrial
import pytest
import torch
from torch import nn

from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.lineage import PARENT


if TYPE_CHECKING:
    from tests.checkpoints.conftest import Counting


def test_a_newborn_begins_and_a_child_goes_on(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    first = study.ask()
    counter, run = counting.resume(store, first)
    assert (run.step, run.origin, counter.count) == (0, None, 0)
    counting.train(store, first, steps=3)
    for number in (1, 2):
        counter, run = counting.resume(store, counting.child_of(study, 0))
        assert (run.step, run.origin, counter.count) == (3, 0, 3)
        assert study.trials[number].user_attrs["resumed"] == {"trial": 0, "step": 3}
    assert "resumed" not in study.trials[0].user_attrs


def test_the_attribute_says_what_the_file_is(
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    saved = counting.train(store, study.ask(), steps=5)
    assert counting.newest(study, 0) == saved
    content = (tmp_path / saved.artifact).read_bytes()
    assert (saved.step, saved.size) == (5, len(content))
    assert saved.sha256 == hashlib.sha256(content).hexdigest()
    assert saved.previous is not None
    assert (saved.previous.step, saved.previous.previous) == (4, None)


def test_a_trial_whose_worker_died_goes_on_by_itself(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    counting.train(store, study.ask(), steps=3)
    dead = study.trials[0]
    study.add_trial(
        optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs=dead.user_attrs)
    )
    counter, run = counting.resume(store, study.ask())
    assert (run.step, run.origin, counter.count) == (3, 1, 3)
    assert run.start == 0


def test_a_retried_trial_knows_where_the_first_try_began(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    counting.train(store, study.ask(), steps=3)
    dead = counting.child_of(study, 0)
    _, run = counting.resume(store, dead)
    assert (run.start, run.step) == (3, 3)
    counting.train(store, dead, steps=2)
    for _ in range(2):  # and if that one's worker dies, too
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.WAITING, user_attrs=study.trials[-1].user_attrs
            )
        )
        _, run = counting.resume(store, study.ask())
        assert (run.start, run.step) == (3, 5)


def test_a_parent_without_a_checkpoint_gives_way_to_the_grandparent(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    counting.train(store, study.ask(), steps=2)
    counting.child_of(study, 0)  # saves nothing
    assert counting.resume(store, counting.child_of(study, 1))[1].step == 2
    study.ask()
    with pytest.raises(CheckpointError, match="no checkpoint is usable: its ancestors have none."):
        counting.resume(store, counting.child_of(study, 3))


def test_there_is_no_such_parent(store: CheckpointStore, study: Study, counting: Counting) -> None:
    with pytest.raises(CheckpointError, match="trial 0 names trial 7 as its parent, which the"):
        counting.resume(store, counting.child_of(study, 7))
    trial = FixedTrial({})
    trial.set_user_attr(PARENT, 0)
    with pytest.raises(CheckpointError, match="trial 0 names trial 0 as its parent, which the"):
        counting.resume(store, trial)


def test_a_trial_that_is_its_own_parent_does_not_hang(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    with pytest.raises(CheckpointError, match="its ancestors have none"):
        counting.resume(store, counting.child_of(study, 0))


def test_what_is_identical_is_stored_once(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    artifacts = set()
    for _ in range(3):
        trial = study.ask()
        artifacts.add(store.resume(trial, model=nn.ParameterList([torch.zeros(9)])).save(1))
        study.tell(trial, 0.0)
    assert len({checkpoint.sha256 for checkpoint in artifacts}) == 1
    assert len([*tmp_path.iterdir()]) == 1


def test_steps_only_go_up(store: CheckpointStore, study: Study, counting: Counting) -> None:
    _, run = counting.resume(store, study.ask())
    run.save(3)
    run.save(3)
    with pytest.raises(ValueError, match="`step` must be at least 3, but got 2"):
        run.save(2)
    with pytest.raises(TypeError, match="`step` must be an integer, but got 3.5"):
        run.save(3.5)  # type: ignore[arg-type]


def test_autosave_saves_when_the_last_checkpoint_is_old(
    tmp_path: Path, study: Study, counting: Counting
) -> None:
    _, rarely = counting.resume(CheckpointStore(tmp_path, autosave=3600), study.ask())
    assert [rarely.autosave(step) for step in (1, 2, 3)] == [None] * 3
    _, always = counting.resume(CheckpointStore(tmp_path, autosave=0), study.ask())
    first = always.autosave(1)
    assert first is not None
    assert counting.newest(study, 1) == first
    assert always.autosave(2) is None  # so soon, it would take too much of the time


def test_other_trials_than_running_ones(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    fixed = FixedTrial({})
    counting.train(store, fixed, steps=4)
    assert counting.resume(store, fixed)[0].count == 4
    trial = study.ask()
    counting.train(store, trial, steps=2)
    study.tell(trial, 1.0)
    counter, run = counting.resume(store, study.best_trial)
    assert (counter.count, run.step) == (2, 2)
    counter = counting.counter()
    assert store.load(study.best_trial, counter=counter) == 2
    assert counter.count == 2
    with pytest.raises(CheckpointError, match=r"^trial 0 has no checkpoint\.$"):
        store.load(FixedTrial({}), counter=counter)


def test_a_trial_outside_of_a_study_keeps_two_files(
    store: CheckpointStore, tmp_path: Path, counting: Counting
) -> None:
    trial = FixedTrial({})
    counting.train(store, trial, steps=5)
    assert len([*tmp_path.iterdir()]) == 2
    counting.train(store, trial, steps=5)
    assert len([*tmp_path.iterdir()]) == 2
    counter, run = counting.resume(store, trial)
    for _ in range(4):
        saved = run.save(11)  # the same again and again
    assert saved.previous is not None
    assert (saved.step, saved.previous.step) == (11, 10)
    assert counting.resume(store, trial)[1].step == 11
    assert counter.count == 10


def test_a_finished_trial_evaluated_once_more_takes_nothing_from_the_study(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    trial = study.ask()
    counting.train(store, trial, steps=3)
    study.tell(trial, 1.0)
    again: FrozenTrial = study.best_trial
    counting.train(store, again, steps=4)
    assert store.load(study.best_trial, counter=counting.counter()) == 3


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_parents_written_by_hooks_are_seen_on_every_storage(
    kind: str, store: CheckpointStore, tmp_path: Path, counting: Counting
) -> None:
    """A running trial's own copy of its attributes is older than the hook."""
    from optuna_ext import open_storage
    from optuna_ext.samplers._host import set_trial_user_attr

    class Chain(optuna.samplers.RandomSampler):
        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            if trial.number:
                set_trial_user_attr(study, trial, PARENT, trial.number - 1)

    path = tmp_path / "files"
    url = str(path) + ".db" if kind == "sqlite" else f"journal:{path}.log"
    study = optuna.create_study(storage=open_storage(url), sampler=Chain())
    for number in range(3):
        trial = study.ask()
        assert counting.resume(store, trial)[1].step == 2 * number
        counting.train(store, trial, steps=2)
        study.tell(trial, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "`keep` must be at least 1, but got 0"),
        ({"autosave": -1}, "`autosave` must be at least 0 seconds, but got -1"),
        ({"grace": float("nan")}, "`grace` must be at least 0 seconds, but got nan"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointStore(":memory:", **options)


def test_what_was_trained_without_resume_is_kept_for_others(
    store: CheckpointStore, study: Study
) -> None:
    def things(lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(2, 1)
        return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    model, optimizer = things(0.1)
    model(torch.ones(2)).backward()
    optimizer.step()
    saved = store.save(study.ask(), 4, model=model, optimizer=optimizer)
    assert (saved.step, saved.previous) == (4, None)
    states = store.states(study.trials[0])
    assert {*states} == {"model", "optimizer"}
    torch.testing.assert_close(states["model"], model.state_dict())
    random = torch.get_rng_state()
    study.enqueue_trial({}, user_attrs={PARENT: 0})
    child, own = things(0.2)
    drawn = torch.get_rng_state()
    run = store.resume(study.ask(), model=child, optimizer=own)
    assert (run.step, run.start, run.origin) == (4, 4, 0)
    torch.testing.assert_close(child.state_dict(), model.state_dict())
    assert own.param_groups[0]["lr"] == 0.2  # its own
    buffers = [o.state[p]["momentum_buffer"] for o in (own, optimizer) for p in o.state]
    torch.testing.assert_close(buffers[:2], buffers[2:])
    assert torch.equal(torch.get_rng_state(), drawn)  # which is not that of the parent
    assert not torch.equal(drawn, random)


def test_saving_again_keeps_the_one_before(store: CheckpointStore, study: Study) -> None:
    model, trial = nn.Linear(2, 1), study.ask()
    first = store.save(trial, 1, model=model)
    nn.init.zeros_(model.weight)
    assert store.save(trial, 2, model=model).previous == first
    with pytest.raises(ValueError, match="`step` must be"):
        store.save(trial, -1, model=model)
    with pytest.raises(TypeError, match="`model` must have state_dict"):
        store.save(trial, 3, model=1)
    with pytest.raises(CheckpointError, match="trial 1 has no checkpoint"):
        store.states(study.ask())
