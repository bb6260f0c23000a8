"""A checkpoint that was damaged, or could not be written, costs no more than itself."""

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
from typing import TYPE_CHECKING

from optuna.study import Study
from optuna.trial import FixedTrial
from optuna.trial import Trial
import pytest
import torch

from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.lineage import CHECKPOINT
from optuna_ext.lineage import PARENT


if TYPE_CHECKING:
    from tests.checkpoints.conftest import Counting


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


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    how: str,
    store: CheckpointStore,
    study: Study,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    counting: Counting,
) -> None:
    saved = counting.train(store, study.ask(), steps=3)
    damage(tmp_path / saved.artifact, how)
    with caplog.at_level(logging.WARNING):
        counter, run = counting.resume(store, counting.child_of(study, 0))
    assert (run.step, counter.count) == (2, 2)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "Trial 1 cannot use a checkpoint: that of trial 0 at step 3 "
    )
    assert study.trials[1].user_attrs["resumed"] == {"trial": 0, "step": 2}


@pytest.mark.parametrize("how", HOW)
def test_without_one_before_the_grandparents_is_used(
    how: str, store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    counting.train(store, study.ask(), steps=3)
    saved = counting.train(store, counting.child_of(study, 0))
    damage(tmp_path / saved.artifact, how)
    counter, run = counting.resume(store, counting.child_of(study, 1))
    assert (run.step, run.origin, counter.count) == (3, 0, 3)
    assert study.trials[2].user_attrs["resumed"] == {"trial": 0, "step": 3}


@pytest.mark.parametrize("how", HOW)
def test_a_child_without_any_usable_checkpoint_fails_in_one_sentence(
    how: str, store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    saved = counting.train(store, study.ask())
    damage(tmp_path / saved.artifact, how)
    with pytest.raises(
        CheckpointError,
        match=r"^trial 1 cannot go on from trial 0, because no checkpoint is usable: that of "
        r"trial 0 at step 1 [^\n]+\.$",
    ):
        counting.resume(store, counting.child_of(study, 0))


def test_a_member_whose_ancestors_are_gone_goes_on_from_the_best(
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    """A population must not fail forever because of one file."""
    for steps, value in ((3, 5.0), (2, 1.0), (1, 0.0), (4, float("inf"))):
        trial = study.ask()
        counting.train(store, trial, steps=steps)
        study.tell(trial, value)
    damage(tmp_path / counting.newest(study, 2).artifact, "cut")
    child = counting.child_of(study, 2)
    with pytest.raises(CheckpointError, match="cannot go on from trial 2"):
        counting.resume(store, child)
    child.set_user_attr("member", 0)
    counter, run = counting.resume(store, child)
    assert (run.step, run.origin, counter.count) == (2, 1, 2)
    assert study.trials[4].user_attrs["resumed"] == {"trial": 1, "step": 2}


def test_a_newborn_that_lost_its_own_checkpoint_starts_once_more(
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    trial = study.ask()
    damage(tmp_path / counting.train(store, trial).artifact, "cut")
    counter, run = counting.resume(store, trial)
    assert (run.step, run.origin, counter.count) == (0, None, 0)
    assert run.save(1).previous is None  # not the damaged one


def test_a_damaged_file_is_mended_by_saving_the_same_again(
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    trial = study.ask()
    damage(tmp_path / counting.train(store, trial).artifact, "cut")
    counting.train(store, trial)
    assert counting.resume(store, trial)[1].step == 1


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
    counting: Counting,
) -> None:
    """Even one whose SHA-256 the storage confirms."""
    monkeypatch.chdir(tmp_path)
    trial = study.ask()
    saved = counting.train(store, trial)
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
        counting.resume(store, counting.child_of(study, 0))
    with pytest.raises(CheckpointError, match="trial 0 at step 1 (holds code or|is no c)"):
        store.load(study.trials[0], counter=counting.counter())
    assert not (tmp_path / "was_here").exists()
    torch.load(io.BytesIO(evil), weights_only=False) if form == "torch" else pickle.loads(evil)
    assert (tmp_path / "was_here").exists()  # it would have


@pytest.mark.parametrize(
    "content", [b"nothing of the kind", None, {"format": 2, "step": 1}, [1, 2, 3]]
)
def test_a_file_of_another_kind_is_refused(
    content: Any, store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    trial = study.ask()
    saved = counting.train(store, trial)
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
        counting.resume(store, counting.child_of(study, 0))


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
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    counter, run = counting.resume(store, study.ask())
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
    assert counting.newest(study, 0) == saved
    assert run.step == 1
    assert run.save(2).step == 2  # there is room again


def test_the_storage_is_told_last(
    store: CheckpointStore, study: Study, tmp_path: Path, counting: Counting
) -> None:
    """A trial names only what is there: its file is whole before the attribute is written."""
    trial = study.ask()
    seen = []

    class Watching(FixedTrial):
        def set_user_attr(self, key: str, value: Any) -> None:
            seen.append((key, (tmp_path / value["artifact"]).stat().st_size == value["size"]))

    counting.train(store, Watching({}))
    assert seen == [(CHECKPOINT, True)]
    assert trial.number == 0


def test_a_lost_connection_to_the_storage_leaves_the_former_checkpoint(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    trial = study.ask()
    counter, run = counting.resume(store, trial)
    run.save(1)

    def fail(key: str, value: Any) -> None:
        raise ConnectionError("gone")

    trial.set_user_attr = fail  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        run.save(2)
    assert counting.newest(study, 0).step == 1
    assert counter.count == 0


def test_under_optimize_a_failing_checkpoint_fails_its_trial(
    store: CheckpointStore, study: Study, counting: Counting
) -> None:
    def objective(trial: Trial) -> float:
        counting.train(store, trial)
        return 0.0

    study.enqueue_trial({}, user_attrs={PARENT: 9})
    study.optimize(objective, n_trials=2, catch=(CheckpointError,))
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
