from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import inspect
from pathlib import Path
import subprocess
import sys
import textwrap
from typing import Any

from filelock import FileLock
import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
import pytest
import torch
from torch import Tensor

from optuna_ext import fused


class TestMemory:
    def test_it_halves_the_slots_and_goes_on(
        self, toy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = fused.Population.train_epoch
        refused: list[int] = []

        def scarce(population: fused.Population, *args: Any, **kwargs: Any) -> Tensor:
            if len(population.taken) > 3:
                refused.append(len(population.taken))
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
            return train(population, *args, **kwargs)

        plenty = toy.run(16, slots=12)
        monkeypatch.setattr(fused.Population, "train_epoch", scarce)
        study = toy.new_study()
        summary = fused.optimize(study, toy.problem(), 16, slots=12, device="cpu")
        assert refused
        assert summary.slots < 12
        toy.assert_same(study, plenty)

    def test_one_that_does_not_fit_fails(self, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(*args: Any, **kwargs: Any) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        monkeypatch.setattr(fused.Population, "train_epoch", none)
        study = toy.run(3, slots=2)
        assert {trial.state for trial in study.trials} == {TrialState.FAIL}
        assert study.trials[0].user_attrs["reason"] == "out of memory on cpu: CUDA out of memory."

    def test_other_errors_come_through(self, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any, **kwargs: Any) -> Tensor:
            raise RuntimeError("shapes")

        monkeypatch.setattr(fused.Population, "train_epoch", broken)
        study = toy.new_study()
        with pytest.raises(RuntimeError, match="shapes"):
            toy.run(3, study=study)
        assert {trial.state for trial in study.trials} == {TrialState.FAIL}


class TestStorage:
    def test_in_a_file(self, toy: Any, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        study = toy.run(6, study=toy.new_study(storage=url, study_name="s"))
        again = optuna.load_study(study_name="s", storage=RDBStorage(url))
        toy.assert_same(again, toy.run(6))
        assert again.trials == study.trials
        study.optimize(lambda trial: toy.alone(trial, toy.problem()), n_trials=1)
        assert len(again.trials) == 7

    def test_a_killed_run_goes_on(self, toy: Any, tmp_path: Path) -> None:
        """Killed in the middle, it ends as if nothing had happened."""
        script = textwrap.dedent(
            f"""
            import importlib.util, sys, time
            import optuna, optuna_ext
            spec = importlib.util.spec_from_file_location("it", {inspect.getfile(type(toy))!r})
            it = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(it)
            toy = it.Toy()
            optuna.logging.set_verbosity(optuna.logging.ERROR)

            def stop(trial):
                if int(sys.argv[1]) and trial.number == 17:
                    print("waiting", flush=True)
                    time.sleep(600)
                return toy.suggest(trial)

            class Prune(optuna.pruners.BasePruner):
                def prune(self, study, trial):
                    return trial.number % 2 == 1 and trial.last_step == 1 + trial.number % 3

            study = optuna.create_study(
                study_name="s",
                storage="sqlite:///study.db",
                load_if_exists=True,
                pruner=Prune(),
                sampler=optuna_ext.SobolSampler(seed=0),
            )
            optuna_ext.fused.optimize(
                study,
                toy.problem(suggest=stop),
                24,
                slots=6,
                device="cpu",
                checkpoint="run.pt",
                checkpoint_interval=1e-9,
            )
            """
        )
        command = [sys.executable, "-c", script]
        with subprocess.Popen([*command, "1"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"waiting\n"
            process.kill()
        url = f"sqlite:///{tmp_path}/study.db"
        killed = optuna.load_study(study_name="s", storage=url)
        running = [t.number for t in killed.trials if t.state == TrialState.RUNNING]
        assert len(running) == 6
        assert (tmp_path / "run.pt").exists()
        subprocess.run([*command, "0"], cwd=tmp_path, check=True, timeout=240)
        assert not (tmp_path / "run.pt").exists()
        study = optuna.load_study(study_name="s", storage=url)
        (tmp_path / "whole").mkdir()
        subprocess.run([*command, "0"], cwd=tmp_path / "whole", check=True, timeout=240)
        whole = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/whole/study.db")
        toy.assert_same(study, whole)
        assert len(study.trials) == 24

    def test_checkpoints_of_something_else(self, toy: Any, tmp_path: Path) -> None:
        path = tmp_path / "run.pt"
        path.write_text("hello")
        with pytest.raises(ValueError, match="is not one of this program"):
            toy.run(1, checkpoint=path)
        torch.save({"version": 2, "run": "x", "state": {}, "study": "other"}, path)
        with pytest.raises(ValueError, match="but it is of 'other'"):
            toy.run(1, checkpoint=path)

    def test_a_checkpoint_is_of_one_process(self, toy: Any, tmp_path: Path) -> None:
        path = tmp_path / "run.pt"
        with (
            FileLock(f"{path}.lock"),
            pytest.raises(fused.CheckpointInUseError, match="must be of one process"),
        ):
            toy.run(1, checkpoint=path)
        with fused.locked(path):  # who has it may train
            assert len(toy.run(1, checkpoint=path).trials) == 1
            with ThreadPoolExecutor() as threads, pytest.raises(fused.CheckpointInUseError):
                threads.submit(toy.run, 1, checkpoint=path).result()
