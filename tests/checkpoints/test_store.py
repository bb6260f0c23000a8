"""Checkpoints are whole or not there, and a trial goes on from the right one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import io
import logging
import os
from pathlib import Path
import pickle
import resource
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FixedTrial
from optuna.trial import FrozenTrial
from optuna.trial import Trial
import pytest
import torch
from torch import nn

from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import PARENT


class Counter:
    """Trains by counting."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def resume(store: CheckpointStore, trial: Any) -> tuple[Counter, Any]:
    counter = Counter()
    return counter, store.resume(trial, counter=counter)


def train(store: CheckpointStore, trial: Any, *, steps: int = 1) -> Checkpoint:
    counter, run = resume(store, trial)
    for step in range(run.step + 1, run.step + steps + 1):
        counter.count += 1
        saved = run.save(step)
    assert isinstance(saved, Checkpoint)
    return saved


def child_of(study: Study, parent: int) -> Trial:
    study.enqueue_trial({}, user_attrs={PARENT: parent})
    return study.ask()


def newest(study: Study, number: int) -> Checkpoint:
    checkpoint = Checkpoint.of(study.trials[number])
    assert checkpoint is not None
    return checkpoint


@pytest.fixture
def study() -> Study:
    return optuna.create_study(study_name="a study/ü")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path, grace=0)


def damage(path: Path, how: str) -> None:
    match how:
        case "altered":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "cut":
            os.truncate(path, path.stat().st_size // 2)
        case "grown":
            path.write_bytes(path.read_bytes() + b"x")
        case "empty":
            os.truncate(path, 0)
        case "gone":
            path.unlink()
        case "a directory":
            path.unlink()
            path.mkdir()


HOW = ["altered", "cut", "grown", "empty", "gone", "a directory"]


def test_a_newborn_begins_and_a_child_goes_on(store: CheckpointStore, study: Study) -> None:
    first = study.ask()
    counter, run = resume(store, first)
    assert (run.step, run.origin, counter.count) == (0, None, 0)
    train(store, first, steps=3)
    for number in (1, 2):
        counter, run = resume(store, child_of(study, 0))
        assert (run.step, run.origin, counter.count) == (3, 0, 3)
        assert study.trials[number].user_attrs["resumed"] == {"trial": 0, "step": 3}
    assert "resumed" not in study.trials[0].user_attrs


def test_the_attribute_says_what_the_file_is(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    saved = train(store, study.ask(), steps=5)
    assert newest(study, 0) == saved
    content = (tmp_path / saved.artifact).read_bytes()
    assert (saved.step, saved.size) == (5, len(content))
    assert saved.sha256 == hashlib.sha256(content).hexdigest()
    assert saved.previous is not None
    assert (saved.previous.step, saved.previous.previous) == (4, None)


def test_a_trial_whose_worker_died_goes_on_by_itself(store: CheckpointStore, study: Study) -> None:
    train(store, study.ask(), steps=3)
    dead = study.trials[0]
    study.add_trial(
        optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs=dead.user_attrs)
    )
    counter, run = resume(store, study.ask())
    assert (run.step, run.origin, counter.count) == (3, 1, 3)
    assert run.start == 0


def test_a_retried_trial_knows_where_the_first_try_began(
    store: CheckpointStore, study: Study
) -> None:
    train(store, study.ask(), steps=3)
    dead = child_of(study, 0)
    _, run = resume(store, dead)
    assert (run.start, run.step) == (3, 3)
    train(store, dead, steps=2)
    for _ in range(2):  # and if that one's worker dies, too
        study.add_trial(
            optuna.create_trial(
                state=optuna.trial.TrialState.WAITING, user_attrs=study.trials[-1].user_attrs
            )
        )
        _, run = resume(store, study.ask())
        assert (run.start, run.step) == (3, 5)


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    how: str,
    store: CheckpointStore,
    study: Study,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saved = train(store, study.ask(), steps=3)
    damage(tmp_path / saved.artifact, how)
    with caplog.at_level(logging.WARNING):
        counter, run = resume(store, child_of(study, 0))
    assert (run.step, counter.count) == (2, 2)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "Trial 1 cannot use a checkpoint: that of trial 0 at step 3 "
    )
    assert study.trials[1].user_attrs["resumed"] == {"trial": 0, "step": 2}


@pytest.mark.parametrize("how", HOW)
def test_without_one_before_the_grandparents_is_used(
    how: str, store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    train(store, study.ask(), steps=3)
    saved = train(store, child_of(study, 0))
    damage(tmp_path / saved.artifact, how)
    counter, run = resume(store, child_of(study, 1))
    assert (run.step, run.origin, counter.count) == (3, 0, 3)
    assert study.trials[2].user_attrs["resumed"] == {"trial": 0, "step": 3}


@pytest.mark.parametrize("how", HOW)
def test_a_child_without_any_usable_checkpoint_fails_in_one_sentence(
    how: str, store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    saved = train(store, study.ask())
    damage(tmp_path / saved.artifact, how)
    with pytest.raises(
        CheckpointError,
        match=r"^trial 1 cannot go on from trial 0, because no checkpoint is usable: that of "
        r"trial 0 at step 1 [^\n]+\.$",
    ):
        resume(store, child_of(study, 0))


def test_a_member_whose_ancestors_are_gone_goes_on_from_the_best(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    """A population must not fail forever because of one file."""
    for steps, value in ((3, 5.0), (2, 1.0), (1, 0.0), (4, float("inf"))):
        trial = study.ask()
        train(store, trial, steps=steps)
        study.tell(trial, value)
    damage(tmp_path / newest(study, 2).artifact, "cut")
    child = child_of(study, 2)
    with pytest.raises(CheckpointError, match="cannot go on from trial 2"):
        resume(store, child)
    child.set_user_attr("member", 0)
    counter, run = resume(store, child)
    assert (run.step, run.origin, counter.count) == (2, 1, 2)
    assert study.trials[4].user_attrs["resumed"] == {"trial": 1, "step": 2}


def test_a_parent_without_a_checkpoint_gives_way_to_the_grandparent(
    store: CheckpointStore, study: Study
) -> None:
    train(store, study.ask(), steps=2)
    child_of(study, 0)  # saves nothing
    assert resume(store, child_of(study, 1))[1].step == 2
    study.ask()
    with pytest.raises(CheckpointError, match="no checkpoint is usable: its ancestors have none."):
        resume(store, child_of(study, 3))


def test_a_newborn_that_lost_its_own_checkpoint_starts_once_more(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    trial = study.ask()
    damage(tmp_path / train(store, trial).artifact, "cut")
    counter, run = resume(store, trial)
    assert (run.step, run.origin, counter.count) == (0, None, 0)
    assert run.save(1).previous is None  # not the damaged one


def test_a_damaged_file_is_mended_by_saving_the_same_again(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    trial = study.ask()
    damage(tmp_path / train(store, trial).artifact, "cut")
    train(store, trial)
    assert resume(store, trial)[1].step == 1


def test_there_is_no_such_parent(store: CheckpointStore, study: Study) -> None:
    with pytest.raises(CheckpointError, match="trial 0 names trial 7 as its parent, which the"):
        resume(store, child_of(study, 7))
    trial = FixedTrial({})
    trial.set_user_attr(PARENT, 0)
    with pytest.raises(CheckpointError, match="trial 0 names trial 0 as its parent, which the"):
        resume(store, trial)


def test_a_trial_that_is_its_own_parent_does_not_hang(
    store: CheckpointStore, study: Study
) -> None:
    with pytest.raises(CheckpointError, match="its ancestors have none"):
        resume(store, child_of(study, 0))


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was_here"),))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_file_that_wants_to_run_code_is_refused(
    form: str,
    store: CheckpointStore,
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even one whose SHA-256 the storage confirms."""
    monkeypatch.chdir(tmp_path)
    trial = study.ask()
    saved = train(store, trial)
    body = io.BytesIO()
    if form == "pickle":
        pickle.dump(Evil(), body)
    else:
        torch.save({"format": 1, "things": Evil()}, body)
    evil = body.getvalue()
    (tmp_path / saved.artifact).write_bytes(evil)
    attribute = {**saved.to_dict(), "size": len(evil), "sha256": hashlib.sha256(evil).hexdigest()}
    trial.set_user_attr(CHECKPOINT, attribute)
    with pytest.raises(CheckpointError, match="at step 1 (holds code or objects|is no c)"):
        resume(store, child_of(study, 0))
    with pytest.raises(CheckpointError, match="trial 0 at step 1 (holds code or|is no c)"):
        store.load(study.trials[0], counter=Counter())
    assert not (tmp_path / "was_here").exists()
    torch.load(io.BytesIO(evil), weights_only=False) if form == "torch" else pickle.loads(evil)
    assert (tmp_path / "was_here").exists()  # it would have


@pytest.mark.parametrize(
    "content", [b"nothing of the kind", None, {"format": 2, "step": 1}, [1, 2, 3]]
)
def test_a_file_of_another_kind_is_refused(
    content: Any, store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    trial = study.ask()
    saved = train(store, trial)
    body = io.BytesIO()
    if isinstance(content, bytes):
        body.write(content)
    else:
        torch.save(content, body)
    other = body.getvalue()
    (tmp_path / saved.artifact).write_bytes(other)
    trial.set_user_attr(
        CHECKPOINT,
        {**saved.to_dict(), "size": len(other), "sha256": hashlib.sha256(other).hexdigest()},
    )
    with pytest.raises(CheckpointError, match="at step 1 (is|holds) [^\n]+$"):
        resume(store, child_of(study, 0))


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


@contextmanager
def small_disk(n_bytes: int) -> Iterator[None]:
    """No file may become larger: writing fails in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_nothing_but_the_new_checkpoint(
    store: CheckpointStore, study: Study, tmp_path: Path
) -> None:
    counter, run = resume(store, study.ask())
    counter.count = 1
    saved = run.save(1)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    counter.count = 2
    with small_disk(saved.size // 2), pytest.raises(CheckpointError) as caught:
        run.save(2)
    assert str(caught.value) == (
        f"trial 0 cannot keep a checkpoint of step 2 in {tmp_path}: File too large; the one "
        "before it is unchanged."
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert newest(study, 0) == saved
    assert run.step == 1
    assert run.save(2).step == 2  # there is room again


def test_the_storage_is_told_last(store: CheckpointStore, study: Study, tmp_path: Path) -> None:
    """A trial names only what is there: its file is whole before the attribute is written."""
    trial = study.ask()
    seen = []

    class Watching(FixedTrial):
        def set_user_attr(self, key: str, value: Any) -> None:
            seen.append((key, (tmp_path / value["artifact"]).stat().st_size == value["size"]))

    train(store, Watching({}))
    assert seen == [(CHECKPOINT, True)]
    assert trial.number == 0


def test_a_lost_connection_to_the_storage_leaves_the_former_checkpoint(
    store: CheckpointStore, study: Study
) -> None:
    trial = study.ask()
    counter, run = resume(store, trial)
    run.save(1)

    def fail(key: str, value: Any) -> None:
        raise ConnectionError("gone")

    trial.set_user_attr = fail  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        run.save(2)
    assert newest(study, 0).step == 1
    assert counter.count == 0


def test_steps_only_go_up(store: CheckpointStore, study: Study) -> None:
    _, run = resume(store, study.ask())
    run.save(3)
    run.save(3)
    with pytest.raises(ValueError, match="`step` must be at least 3, but got 2"):
        run.save(2)
    with pytest.raises(TypeError, match="`step` must be an integer, but got 3.5"):
        run.save(3.5)


def test_autosave_saves_when_the_last_checkpoint_is_old(tmp_path: Path, study: Study) -> None:
    _, rarely = resume(CheckpointStore(tmp_path, autosave=3600), study.ask())
    assert [rarely.autosave(step) for step in (1, 2, 3)] == [None] * 3
    _, always = resume(CheckpointStore(tmp_path, autosave=0), study.ask())
    first = always.autosave(1)
    assert first is not None
    assert newest(study, 1) == first
    assert always.autosave(2) is None  # so soon, it would take too much of the time


def test_other_trials_than_running_ones(store: CheckpointStore, study: Study) -> None:
    fixed = FixedTrial({})
    train(store, fixed, steps=4)
    assert resume(store, fixed)[0].count == 4
    trial = study.ask()
    train(store, trial, steps=2)
    study.tell(trial, 1.0)
    counter, run = resume(store, study.best_trial)
    assert (counter.count, run.step) == (2, 2)
    counter = Counter()
    assert store.load(study.best_trial, counter=counter) == 2
    assert counter.count == 2
    with pytest.raises(CheckpointError, match=r"^trial 0 has no checkpoint\.$"):
        store.load(FixedTrial({}), counter=counter)


def test_a_trial_outside_of_a_study_keeps_two_files(
    store: CheckpointStore, tmp_path: Path
) -> None:
    trial = FixedTrial({})
    train(store, trial, steps=5)
    assert len([*tmp_path.iterdir()]) == 2
    train(store, trial, steps=5)
    assert len([*tmp_path.iterdir()]) == 2
    counter, run = resume(store, trial)
    for _ in range(4):
        saved = run.save(11)  # the same again and again
    assert saved.previous is not None
    assert (saved.step, saved.previous.step) == (11, 10)
    assert resume(store, trial)[1].step == 11
    assert counter.count == 10


def test_a_finished_trial_evaluated_once_more_takes_nothing_from_the_study(
    store: CheckpointStore, study: Study
) -> None:
    trial = study.ask()
    train(store, trial, steps=3)
    study.tell(trial, 1.0)
    again: FrozenTrial = study.best_trial
    train(store, again, steps=4)
    assert store.load(study.best_trial, counter=Counter()) == 3


def test_under_optimize_a_failing_checkpoint_fails_its_trial(
    store: CheckpointStore, study: Study
) -> None:
    def objective(trial: Trial) -> float:
        train(store, trial)
        return 0.0

    study.enqueue_trial({}, user_attrs={PARENT: 9})
    study.optimize(objective, n_trials=2, catch=(CheckpointError,))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_parents_written_by_hooks_are_seen_on_every_storage(
    kind: str, store: CheckpointStore, tmp_path: Path
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
        assert resume(store, trial)[1].step == 2 * number
        train(store, trial, steps=2)
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
