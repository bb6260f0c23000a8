"""What can still be of use stays; the rest goes."""

from __future__ import annotations

from collections.abc import Iterator
import datetime
import io
import os
from pathlib import Path
import time
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState
import pytest
import torch

from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.checkpoints import Run
from optuna_ext.ladder import RUNG
from optuna_ext.lineage import Checkpoint
from optuna_ext.lineage import PARENT


class Counter:
    """Each state is another one, so that nothing is shared by chance."""

    count = 0

    def state_dict(self) -> dict[str, int]:
        Counter.count += 1
        return {"count": Counter.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


@pytest.fixture
def study() -> Study:
    return optuna.create_study(study_name="s")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Judges and deletes at once, but not by itself."""
    store = CheckpointStore(tmp_path, grace=0, keep=2)
    store._collector._next = float("inf")
    return store


def begin(
    study: Study, store: CheckpointStore, *, saves: int = 1, **attributes: Any
) -> tuple[optuna.Trial, Run]:
    study.enqueue_trial({}, user_attrs=attributes)
    trial = study.ask()
    run = store.resume(trial, counter=Counter())
    for _ in range(saves):
        run.save(run.step + 1)
    return trial, run


def end(
    study: Study,
    store: CheckpointStore,
    state: TrialState = TrialState.COMPLETE,
    value: float = 0.0,
    **attributes: Any,
) -> int:
    trial, _ = begin(study, store, **attributes)
    study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    return trial.number


def kept(study: Study, store: CheckpointStore, tmp_path: Path) -> dict[int, list[int]]:
    """Return the steps that are still there, by trial."""
    store.collect(study)
    files = {path.name for path in tmp_path.iterdir()}
    found: dict[int, list[int]] = {}
    for trial in study.trials:
        checkpoint = Checkpoint.of(trial)
        while checkpoint is not None:
            if checkpoint.artifact in files:
                found.setdefault(trial.number, []).append(checkpoint.step)
                files.discard(checkpoint.artifact)
            checkpoint = checkpoint.previous
    assert files == set()
    return found


def test_a_running_trial_keeps_its_last_two(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    begin(study, store, saves=5)
    assert len([*tmp_path.iterdir()]) == 5
    assert kept(study, store, tmp_path) == {0: [5, 4]}


def test_of_finished_trials_the_best_are_kept(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    for value in (3.0, 1.0, 2.0, float("inf"), 4.0):
        end(study, store, value=value, saves=2)
    end(study, store, TrialState.FAIL)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.FAIL, user_attrs={}, system_attrs={"retry_history": [5]}
        )
    )
    assert kept(study, store, tmp_path) == {1: [2], 2: [2]}


def test_a_failed_trial_is_kept_until_it_is_tried_again(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    for value in (0.0, 0.0):
        end(study, store, value=value)
    parent = end(study, store, value=9.0)
    study.enqueue_trial({}, user_attrs={PARENT: parent})
    study.tell(study.ask(), state=TrialState.FAIL)  # before it saved anything
    failed = end(study, store, TrialState.FAIL, saves=2)
    assert kept(study, store, tmp_path) == {0: [1], 1: [1], parent: [1], failed: [2]}
    for number in (3, failed):
        study.add_trial(
            optuna.create_trial(state=TrialState.FAIL, system_attrs={"retry_history": [number]})
        )
    assert kept(study, store, tmp_path) == {0: [1], 1: [1]}


def test_the_best_are_those_of_the_direction(store: CheckpointStore, tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    for value in (3.0, 1.0, 2.0, 4.0):
        end(study, store, value=value)
    assert kept(study, store, tmp_path) == {0: [1], 3: [1]}


def test_of_several_objectives_the_front_is_kept(store: CheckpointStore, tmp_path: Path) -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for values in ((2, 2), (2, 1), (1, 1), (1, 1), (3, 2), (0, 0)):
        trial, _ = begin(study, store)
        study.tell(trial, values)
    assert kept(study, store, tmp_path) == {0: [1], 2: [1], 3: [1], 5: [1]}


def test_a_paused_trial_is_kept_until_its_child_has_ended_well(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    paused = end(study, store, TrialState.PRUNED, **{RUNG: 0})
    other = end(study, store, TrialState.PRUNED, **{RUNG: 0})
    assert kept(study, store, tmp_path) == {paused: [1], other: [1]}
    failed = end(study, store, TrialState.FAIL, **{PARENT: paused, RUNG: 1})
    assert kept(study, store, tmp_path) == {paused: [1], other: [1], failed: [2]}
    study.add_trial(  # whose retry has failed, too
        optuna.create_trial(state=TrialState.FAIL, system_attrs={"retry_history": [failed]})
    )
    trial, _ = begin(study, store, **{PARENT: paused, RUNG: 1})
    assert kept(study, store, tmp_path) == {paused: [1], other: [1], trial.number: [2]}
    study.tell(trial, state=TrialState.PRUNED)
    assert kept(study, store, tmp_path) == {other: [1], trial.number: [2]}


def test_what_a_plain_pruner_stops_is_of_no_more_use(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    stopped = end(study, store, TrialState.PRUNED)
    study.enqueue_trial({}, user_attrs={PARENT: stopped})
    assert kept(study, store, tmp_path) == {stopped: [1]}  # unless somebody is about to go on
    study.tell(study.ask(), 0.0)
    assert kept(study, store, tmp_path) == {}


def test_a_parent_is_kept_until_its_child_has_its_own(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    """Its worker may die before that, and another one then begins there again."""
    for value in (0.0, 0.0):
        end(study, store, value=value)
    parent = end(study, store, value=9.0, saves=3)
    study.enqueue_trial({}, user_attrs={PARENT: parent})
    assert parent in kept(study, store, tmp_path)
    trial = study.ask()
    assert kept(study, store, tmp_path)[parent] == [3, 2]
    run = store.resume(trial, counter=Counter())
    assert kept(study, store, tmp_path)[parent] == [3, 2]
    run.save(4)
    assert parent not in kept(study, store, tmp_path)


def test_of_a_population_the_last_two_generations_are_kept(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    """A slow member of a synchronous one still chooses among those before the last."""
    best = [end(study, store, value=-1.0) for _ in range(2)]
    for generation in range(4):
        for member in range(2):
            end(study, store, value=1.0, member=member, generation=generation)
    end(study, store, value=1.0, member=0, generation=4)
    end(study, store, value=float("inf"), member=1, generation=4)
    assert [*kept(study, store, tmp_path)] == [*best, 7, 8, 9, 10]


def test_a_retry_shares_the_files_of_the_dead_trial(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    dead = end(study, store, TrialState.FAIL, saves=2)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            user_attrs=study.trials[dead].user_attrs,
            system_attrs={"retry_history": [dead]},
        )
    )
    assert kept(study, store, tmp_path) == {dead: [2, 1]}  # by their first name
    assert store.resume(study.ask(), counter=Counter()).step == 2


def test_other_studies_files_stay(study: Study, store: CheckpointStore, tmp_path: Path) -> None:
    """Even those of a study of the same name in another storage, with the same content."""
    twin = optuna.create_study(study_name="s")
    for one in (study, twin):
        Counter.count = 0
        for _ in range(3):
            end(one, store)
    assert len([*tmp_path.iterdir()]) == 6
    (tmp_path / "notes.txt").touch()
    assert len(store.collect(study)) == 1
    assert len([*tmp_path.iterdir()]) == 6
    for trial in twin.trials:
        assert store.load(trial, counter=Counter()) == 1


def test_what_a_killed_worker_was_writing_goes_when_it_is_old(
    study: Study, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, grace=100)
    end(study, store)
    (path,) = tmp_path.iterdir()
    young, old = (tmp_path / f"{path.name}.{digit * 32}.tmp" for digit in "01")
    for half in (young, old):
        half.write_bytes(b"half")
    os.utime(old, (0, time.time() - 200))
    assert store.collect(study) == [old.name]
    assert sorted(tmp_path.iterdir()) == sorted([path, young])


def test_what_has_just_ended_counts_as_running(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have decided before to read it, and be on its way.

    Nor does a new best trial take the place of the former one at once.
    """
    store = CheckpointStore(tmp_path, grace=100, keep=1)
    for value in (3.0, 1.0, 2.0):
        end(study, store, value=value)
    long_ago = datetime.datetime.now() - datetime.timedelta(seconds=300)
    study.get_trials(deepcopy=False)[0].datetime_complete = long_ago
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # old files of trials that ended just now
    assert store.collect(study) == []

    now = datetime.datetime.now

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now(tz) + datetime.timedelta(seconds=200)

    monkeypatch.setattr(datetime, "datetime", Later)
    assert len(store.collect(study)) == 2


def test_a_young_file_stays_whatever_the_trials_say(study: Study, tmp_path: Path) -> None:
    """Its trial may not have named it yet."""
    store = CheckpointStore(tmp_path, grace=100)
    end(study, store)
    (path,) = tmp_path.iterdir()
    prefix = path.name.rpartition("-")[0]
    unnamed = tmp_path / f"{prefix}-{'0' * 64}.pt"
    unnamed.touch()
    assert store.collect(study) == []
    os.utime(unnamed, (0, 0))
    assert store.collect(study) == [unnamed.name]


def test_a_file_named_while_others_collect_is_not_lost(
    study: Study, store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector lists first and asks the trials then, so it sees the later name."""
    trial, run = begin(study, store)
    place = store._place
    listed = type(place).entries

    def entries(self: Any, start: str) -> Iterator[tuple[str, float]]:
        found = [*listed(self, start)]
        run.save(run.step + 1)
        run.save(run.step + 1)
        yield from found

    monkeypatch.setattr(type(place), "entries", entries)
    assert len(store.collect(study)) == 1
    monkeypatch.undo()
    assert store.load(study.trials[trial.number], counter=Counter()) == 3


def test_content_that_is_saved_again_while_it_is_deleted_is_written_again(
    study: Study, store: CheckpointStore, tmp_path: Path
) -> None:
    """A worker finds its file there already, another one deletes it, then the trial names it."""

    class Constant(Counter):
        def state_dict(self) -> dict[str, int]:
            return {"count": -1}

    state = torch.get_rng_state()
    trial = study.ask()
    run = store.resume(trial, counter=Constant())
    saved = run.save(1)
    torch.set_rng_state(state)
    write = trial.set_user_attr

    def slow(key: str, value: Any) -> None:
        (tmp_path / saved.artifact).unlink()
        write(key, value)

    trial.set_user_attr = slow  # type: ignore[method-assign]
    assert run.save(1).sha256 == saved.sha256
    assert store.load(study.trials[0], counter=Constant()) == 1


def test_it_collects_by_itself_and_never_fails_a_training(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_ext.checkpoints._collector._EVERY", 0.0)
    monkeypatch.setattr("optuna_ext.checkpoints._collector._SHARE", 1e9)
    store = CheckpointStore(tmp_path, grace=0)
    _, run = begin(study, store, saves=5)
    assert len([*tmp_path.iterdir()]) == 2

    def fail(study: Study) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(store, "collect", fail)
    run.save(9)
    assert "Old checkpoints stay in" in caplog.text


def test_saving_does_not_look_at_all_files(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    looks = []

    def entries(self: Any, start: str) -> Iterator[tuple[str, float]]:
        looks.append(start)
        return iter(())

    monkeypatch.setattr(type(store._place), "entries", entries)
    begin(study, store, saves=50)
    assert len(looks) == 1


def test_a_store_that_cannot_be_listed_keeps_everything(study: Study) -> None:
    class Plain:
        def __init__(self) -> None:
            self.files: dict[str, bytes] = {}

        def open_reader(self, artifact_id: str) -> io.BytesIO:
            return io.BytesIO(self.files[artifact_id])

        def write(self, artifact_id: str, content_body: Any) -> None:
            self.files[artifact_id] = content_body.read()

        def remove(self, artifact_id: str) -> None:
            del self.files[artifact_id]

    plain = Plain()
    store = CheckpointStore(plain, grace=0)
    begin(study, store, saves=4)
    assert store.collect(study) == []
    assert len(plain.files) == 4
    assert store.load(study.trials[0], counter=Counter()) == 4
