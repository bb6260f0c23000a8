from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from pathlib import Path
import subprocess
import sys
import textwrap
import time
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import BaseTrial
from optuna.trial import FixedTrial
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest
import torch
from torch import nn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

import optuna_ext
from optuna_ext import fused


EPOCHS = 4


def rows(n: int, seed: int = 0, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return x.to(device), (x[:, 0] * x[:, 1] > 0).long().to(device)


def suggest(trial: BaseTrial) -> dict[str, Any]:
    return {
        "units": trial.suggest_categorical("units", [0, 3, 5]),
        "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "momentum": trial.suggest_float("momentum", 0.0, 0.9),
        "batch_size": trial.suggest_categorical("batch_size", [16, 50]),
    }


def model(hyperparameters: dict[str, Any]) -> nn.Module:
    units = hyperparameters["units"]
    widths = (2, units, 2) if units else (2, 2)
    layers = [nn.Linear(widths[0], widths[1])]
    for i, o in zip(widths[1:-1], widths[2:], strict=True):
        layers += [nn.Tanh(), nn.Linear(i, o)]  # type: ignore[list-item]
    return nn.Sequential(*layers).double()


def losses(outputs: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(outputs, y, reduction="none")


def problem(**changes: Any) -> fused.Problem:
    given: dict[str, Any] = {
        "suggest": suggest,
        "model": model,
        "loss": losses,
        "train": rows(120),
        "valid": rows(70, seed=1),
        "batch_size": lambda hyperparameters: hyperparameters["batch_size"],
        "epochs": EPOCHS,
        "seed": lambda trial: trial.number,
    }
    return fused.Problem(**{**given, **changes})


def alone(trial: BaseTrial, about: fused.Problem, *, seed: int | None = None) -> float:
    """The same training, written as everybody writes it."""
    h = about.suggest(trial)  # type: ignore[arg-type]
    seed = trial.number if seed is None else seed
    torch.manual_seed(seed)
    net = about.model(h)
    optimizer = torch.optim.SGD(net.parameters(), lr=h["lr"], momentum=h["momentum"])
    generator = torch.Generator().manual_seed(seed)
    assert isinstance(about.train, tuple)
    assert isinstance(about.valid, tuple)
    x, y = about.train
    value = math.nan
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.split(torch.randperm(len(x), generator=generator), h["batch_size"]):
            optimizer.zero_grad()
            losses(net(x[batch]), y[batch]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            value = losses(net(about.valid[0]), about.valid[1]).mean().item()
        trial.report(value, epoch)
        if epoch < EPOCHS and trial.should_prune():
            raise optuna.TrialPruned
    return value


def new_study(**about: Any) -> optuna.Study:
    about = {"sampler": optuna.samplers.RandomSampler(seed=0), **about}
    about.setdefault("pruner", optuna.pruners.NopPruner())
    return optuna.create_study(**about)


def run(n_trials: int, about: fused.Problem | None = None, **settings: Any) -> optuna.Study:
    study = settings.pop("study", None) or new_study()
    # Which engine is the fastest is a matter of chance, on which the last bit depends.
    settings = {"device": "cpu", "engine": "vmap", **settings}
    optuna_ext.fused.optimize(study, about or problem(), n_trials, **settings)
    return study


def curves(study: optuna.Study) -> list[dict[int, float]]:
    return [trial.intermediate_values for trial in study.trials]


def assert_same(study: optuna.Study, other: optuna.Study, *, tolerance: float = 1e-12) -> None:
    assert len(study.trials) == len(other.trials)
    for one, two in zip(study.trials, other.trials, strict=True):
        assert one.params == two.params
        assert one.state == two.state
        assert one.intermediate_values == pytest.approx(
            two.intermediate_values, rel=tolerance, abs=tolerance
        )
        assert one.value == pytest.approx(two.value, rel=tolerance, abs=tolerance)


class TestSameAsAlone:
    @pytest.mark.parametrize("slots", [1, 5, 24])
    def test_values(self, slots: int, device: str) -> None:
        theirs = new_study()
        theirs.optimize(lambda trial: alone(trial, problem()), n_trials=24)
        ours = run(24, slots=slots, device=device, engine="auto")
        assert_same(ours, theirs)
        assert {trial.state for trial in ours.trials} == {TrialState.COMPLETE}

    @pytest.mark.parametrize("engine", ["stack", "vmap", "grad", "loop"])
    def test_engines(self, engine: str) -> None:
        theirs = new_study()
        theirs.optimize(lambda trial: alone(trial, problem()), n_trials=6)
        assert_same(run(6, engine=engine), theirs)

    def test_a_loader_and_a_named_optimizer(self) -> None:
        about = problem(seed=3)
        loaders = {
            name: DataLoader(TensorDataset(*getattr(about, name)), batch_size=50, shuffle=True)
            for name in ("train", "valid")
        }
        loaded = problem(seed=3, batch_size="auto", **loaders)
        trial = {"units": 5, "lr": 0.1, "momentum": 0.5, "batch_size": 50}
        study = new_study()
        study.enqueue_trial(trial)
        run(1, loaded, study=study)
        assert study.best_value == pytest.approx(
            alone(FixedTrial(trial), about, seed=3), rel=1e-12
        )

    def test_adam_by_its_betas(self) -> None:
        def given(trial: BaseTrial) -> dict[str, Any]:
            return suggest(trial) | {"beta1": 0.5, "eps": 1e-3}

        def adam(parameters: Any, h: dict[str, Any]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=h["lr"], betas=(0.5, 0.999), eps=1e-3)

        named = run(6, problem(suggest=given, optimizer="adam"))
        assert_same(named, run(6, problem(suggest=given, optimizer=adam)))

    def test_folds_are_averaged(self) -> None:
        train, valid = [rows(120), rows(90, seed=7)], [rows(70, seed=1), rows(40, seed=8)]
        both = run(5, problem(train=train, valid=valid))
        ones = [run(5, problem(train=train[i], valid=valid[i])) for i in range(2)]
        for fold, one, two in zip(curves(both), *map(curves, ones), strict=True):
            for step, value in fold.items():
                assert value == pytest.approx((one[step] + two[step]) / 2, rel=1e-12)

    def test_a_mean_loss_is_enough(self) -> None:
        mean = problem(loss=lambda outputs, y: cross_entropy(outputs, y))
        assert_same(run(8, mean), run(8))

    def test_passes_epochs_and_schedules_by_trial(self) -> None:
        about = problem(
            epochs=lambda h: 2 if h["units"] else 3,
            passes=lambda h: 2 if h["units"] else 1,
            schedule=lambda h: lambda epoch: 0.5**epoch,
        )
        study = run(8, about)
        for trial in study.trials:
            assert len(trial.intermediate_values) == (2 if trial.params["units"] else 3)
            assert trial.user_attrs["epochs"] == len(trial.intermediate_values)
        slower = run(8, dataclasses.replace(about, schedule=lambda h: lambda epoch: 0.1**epoch))
        for one, two in zip(curves(study), curves(slower), strict=True):
            assert one[1] == two[1]  # the first epoch has the factor 1
            assert one[2] != two[2]

    def test_a_shared_order_is_the_same_for_all(self) -> None:
        study = new_study()
        for _ in range(3):
            study.enqueue_trial({"units": 3, "lr": 0.1, "momentum": 0.5, "batch_size": 16})
        one, two, three = curves(run(3, problem(order="shared", seed=0), study=study))
        assert one == two == three


class TestTrials:
    def test_what_is_recorded(self) -> None:
        def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
            return outputs.argmax(1) == y

        about = problem(metrics={"accuracy": accuracy, "loss": losses}, test=rows(50, seed=2))
        study = run(4, about, study=new_study(direction="maximize"))
        for trial in study.trials:
            attrs = trial.user_attrs
            assert trial.value == trial.intermediate_values[EPOCHS] == attrs["valid_accuracy"]
            assert (trial.value * 70) % 1 == pytest.approx(0, abs=1e-9)
            assert attrs["device"] == "cpu"
            assert attrs["epochs"] == EPOCHS
            assert attrs["n_parameters"] == sum(
                p.numel() for p in model(trial.params).parameters()
            )
            assert {"train_loss", "train_seconds", "test_loss", "valid_loss"} <= attrs.keys()
            assert (attrs["test_accuracy"] * 50) % 1 == pytest.approx(0, abs=1e-9)

    def test_the_test_rows_do_not_touch_the_values(self) -> None:
        one, two = (run(4, problem(test=rows(50, seed=seed))) for seed in (2, 3))
        assert curves(one) == curves(two)
        assert one.trials[0].user_attrs["test_loss"] != two.trials[0].user_attrs["test_loss"]

    def test_the_best_of_some_epochs(self) -> None:
        every = run(8)
        some = run(8, problem(best_of=[1, 3, 9]))
        for full, trial in zip(curves(every), some.trials, strict=True):
            assert trial.intermediate_values == {1: full[1], 3: full[3]}
            assert trial.value == min(full[1], full[3])
            assert trial.user_attrs["best_epoch"] == (1 if full[1] <= full[3] else 3)
            assert trial.user_attrs["epochs"] == 3
        with pytest.raises(
            ValueError, match="best_of must have an epoch up to 4, but it has none"
        ):
            run(1, problem(best_of=[9]))

    def test_one_that_explodes_fails_alone(self) -> None:
        def wild(trial: BaseTrial) -> dict[str, Any]:
            lr = 1e308 if trial.number == 3 else 0.1
            return {"units": 5, "lr": lr, "momentum": 0.0, "batch_size": 50}

        def tame(trial: BaseTrial) -> dict[str, Any]:
            return wild(trial) | {"lr": 0.1}

        study = run(8, problem(suggest=wild))
        others = run(8, problem(suggest=tame))
        assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [3]
        assert study.trials[3].user_attrs["reason"].startswith("diverged in epoch ")
        for number in {*range(8)} - {3}:
            assert curves(study)[number] == curves(others)[number]  # bitwise

    def test_pruning_changes_nobody_else(self) -> None:
        class PruneOdd(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                return trial.number % 2 == 1 and trial.last_step == 2

        def fixed(trial: BaseTrial) -> dict[str, Any]:
            return {"units": 5, "lr": 0.1, "momentum": 0.0, "batch_size": 50}

        about = problem(suggest=fixed)
        pruned = run(12, about, slots=6, study=new_study(pruner=PruneOdd()))
        full = run(12, about, slots=6)
        for number, (one, two) in enumerate(zip(curves(pruned), curves(full), strict=True)):
            if number % 2:
                assert pruned.trials[number].state == TrialState.PRUNED
                assert pruned.trials[number].value == one[2]
                assert [*one] == [1, 2]
            elif number < 6:
                assert one == two  # bitwise
            else:  # half of the slots are dropped in the end, where another engine is faster
                assert one == pytest.approx(two, rel=1e-12)

    def test_slots_are_refilled_at_once(self) -> None:
        class PruneEarly(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                return trial.number % 3 != 0

        at_once: list[int] = []

        def note(study: optuna.Study, trial: FrozenTrial) -> None:
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            at_once.append(len(running))

        study = new_study(pruner=PruneEarly())
        run(40, study=study, slots=8, callbacks=[note])
        assert len(study.trials) == 40
        assert max(at_once) < 8
        begun = [t.datetime_start for t in study.trials]
        ended = [t.datetime_complete for t in study.trials]
        assert begun[8] is not None
        assert ended[0] is not None
        assert begun[8] < ended[0]  # the ninth began before the first had ended

    def test_reports_come_before_decisions(self) -> None:
        seen: list[int] = []

        class Count(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                assert trial.last_step is not None
                trials = study.get_trials(deepcopy=False)
                seen.append(sum(trial.last_step in t.intermediate_values for t in trials))
                return False

        run(7, study=new_study(pruner=Count()))
        assert set(seen) == {7}

    def test_what_the_functions_raise(self) -> None:
        def picky(trial: BaseTrial) -> dict[str, Any]:
            if trial.number == 1:
                raise optuna.TrialPruned
            if trial.number == 2:
                raise ArithmeticError("too\nhot")
            return suggest(trial)

        study = run(5, problem(suggest=picky), catch=ArithmeticError, slots=2)
        assert [trial.state for trial in study.trials] == [
            TrialState.COMPLETE,
            TrialState.PRUNED,
            TrialState.FAIL,
            TrialState.COMPLETE,
            TrialState.COMPLETE,
        ]
        assert study.trials[2].user_attrs == {"reason": "ArithmeticError: too hot"}
        study = new_study()
        with pytest.raises(ArithmeticError):
            run(5, problem(suggest=picky), study=study)
        assert [t.state for t in study.trials] == [TrialState.FAIL] * 3

    def test_stop_and_timeout(self) -> None:
        def stop(study: optuna.Study, trial: FrozenTrial) -> None:
            study.stop()

        assert len(run(50, slots=4, callbacks=[stop]).trials) in (4, 8)
        assert run(50, slots=4, timeout=0).trials == []

    def test_enqueued_trials_come_first(self) -> None:
        study = new_study()
        point = {"units": 3, "lr": 0.25, "momentum": 0.0, "batch_size": 16}
        study.enqueue_trial(point)
        run(5, study=study)
        assert study.trials[0].params == point
        assert len(study.trials) == 5


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=0, constant_liar=True, n_startup_trials=5),
    "gp": lambda: optuna.samplers.GPSampler(seed=0, n_startup_trials=5),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=0, n_startup_trials=2),
    "sobol": lambda: optuna_ext.SobolSampler(seed=0),
    "lhs": lambda: optuna_ext.LatinHypercubeSampler(n_points=16, seed=0),
    "evolutionary": lambda: optuna_ext.EvolutionarySampler(population_size=5, seed=0),
    "nelder-mead": lambda: optuna_ext.NelderMeadSampler(seed=0),
    "particle-swarm": lambda: optuna_ext.ParticleSwarmSampler(seed=0),
    "approximate-gradient": lambda: optuna_ext.ApproximateGradientSampler(seed=0),
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=EPOCHS),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestSamplersAndPruners:
    @pytest.mark.parametrize("name", SAMPLERS)
    def test_samplers(self, name: str) -> None:
        study = run(12, slots=4, study=new_study(sampler=SAMPLERS[name]()))
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
        assert len({tuple(trial.params.values()) for trial in study.trials}) > 6

    @pytest.mark.parametrize("name", [*SAMPLERS])
    def test_one_slot_is_the_ordinary_study(self, name: str) -> None:
        theirs = new_study(sampler=SAMPLERS[name]())
        theirs.optimize(lambda trial: alone(trial, problem()), n_trials=9)
        ours = run(9, slots=1, study=new_study(sampler=SAMPLERS[name]()))
        assert [t.params for t in ours.trials] == [
            pytest.approx(t.params, rel=1e-6) for t in theirs.trials
        ]

    @pytest.mark.parametrize("name", PRUNERS)
    def test_pruners(self, name: str) -> None:
        study = run(40, slots=8, study=new_study(pruner=PRUNERS[name]()))
        states = [trial.state for trial in study.trials]
        assert {*states} == {TrialState.COMPLETE, TrialState.PRUNED}
        full = run(40, slots=8)
        for one, two in zip(curves(study), curves(full), strict=True):
            assert one == pytest.approx({step: two[step] for step in one}, rel=1e-12)

    def test_one_slot_prunes_as_the_ordinary_study(self) -> None:
        for make in PRUNERS.values():
            theirs = new_study(pruner=make(), study_name="same")
            theirs.optimize(lambda trial: alone(trial, problem()), n_trials=20)
            assert_same(
                run(20, slots=1, study=new_study(pruner=make(), study_name="same")), theirs
            )


class Inheriting(optuna.samplers.RandomSampler):
    """Three members, of which the worst of a generation becomes a copy of the best."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        generation, member = divmod(trial.number, 3)
        if generation:
            rivals = study.get_trials(deepcopy=False)[3 * generation - 3 : 3 * generation]
            ranked = sorted(rivals, key=lambda rival: rival.value or math.inf)
            own = rivals[member]
            parent = ranked[0] if own.number == ranked[-1].number else own
            study._storage.set_trial_user_attr(trial._trial_id, "parent", parent.number)


class TestParents:
    def given(self, trial: BaseTrial) -> dict[str, Any]:
        lr = trial.suggest_float("lr", 1e-2, 1.0, log=True)
        return {"units": 5, "lr": lr, "momentum": 0.9, "batch_size": 50}

    def test_children_go_on_with_weights_and_momentum(self) -> None:
        about = problem(suggest=self.given, batch_size=None, seed=0, epochs=2)
        study = run(9, about, slots=3, study=new_study(sampler=Inheriting(seed=0)))
        assert [[*curve] for curve in curves(study)] == [[1, 2]] * 3 + [[3, 4]] * 3 + [[5, 6]] * 3
        x, y = rows(120)
        for trial in study.trials[-3:]:
            rates: list[float] = []
            walker = trial
            while True:
                rates.insert(0, walker.params["lr"])
                if "parent" not in walker.user_attrs:
                    break
                walker = study.trials[walker.user_attrs["parent"]]
            torch.manual_seed(0)
            net = model({"units": 5})
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for rate in rates:
                optimizer.param_groups[0]["lr"] = rate
                for _ in range(2):
                    optimizer.zero_grad()
                    losses(net(x), y).mean().backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            with torch.no_grad():
                value = losses(net(rows(70, seed=1)[0]), rows(70, seed=1)[1]).mean().item()
            assert trial.value == pytest.approx(value, rel=1e-12)

    def test_children_have_dropout_of_their_own(self) -> None:
        """A parent's rate must not take the place of what a sampler explores."""

        def given(trial: BaseTrial) -> dict[str, Any]:
            p = trial.suggest_categorical("p", [0.0, 0.5])
            return {"p": p if trial.number < 3 else 0.5 - p, "lr": 0.1, "momentum": 0.0}

        def net(hyperparameters: dict[str, Any]) -> nn.Module:
            layers = nn.Linear(2, 8), nn.Dropout(hyperparameters["p"]), nn.Linear(8, 2)
            return nn.Sequential(*layers).double()

        seen: list[float] = []
        about = problem(suggest=given, model=net, batch_size=None, seed=0, epochs=1)
        trainer = fused.Trainer(about, slots=3, device="cpu", engine="vmap")
        study = new_study(sampler=Inheriting(seed=0))
        for _ in range(2):
            trials = [study.ask() for _ in range(3)]
            trainer.add(trials)
            for fold in trainer.state_dict()["trials"]:
                (rate,) = [v for k, v in fold["folds"][0]["buffers"].items() if "thresh" in k]
                seen.append((int(rate) + 2**31) / 2**32)
            for result in trainer.step():
                study.tell(result.trial, result.final_value)
        wanted = [given(optuna.trial.FixedTrial(t.params, number=t.number)) for t in study.trials]
        assert seen == [w["p"] for w in wanted]
        assert {*seen[:3]} == {*seen[3:]} == {0.0, 0.5}

    def test_a_parent_of_another_shape(self) -> None:
        def given(trial: BaseTrial) -> dict[str, Any]:
            return {**self.given(trial), "units": 5 if trial.number < 3 else 6}

        with pytest.raises(ValueError, match="parent must have a network of the same shapes"):
            run(6, problem(suggest=given), slots=3, study=new_study(sampler=Inheriting()))

    def test_too_few_slots(self) -> None:
        with pytest.raises(ValueError, match="has parent .: use as many slots as the population"):
            run(9, problem(suggest=self.given), slots=1, study=new_study(sampler=Inheriting()))


class TestMemory:
    def test_it_halves_the_slots_and_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train = fused.Population.train_epoch
        refused: list[int] = []

        def scarce(population: fused.Population, *args: Any, **kwargs: Any) -> Tensor:
            if len(population.taken) > 3:
                refused.append(len(population.taken))
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
            return train(population, *args, **kwargs)

        plenty = run(16, slots=12)
        monkeypatch.setattr(fused.Population, "train_epoch", scarce)
        study = new_study()
        summary = fused.optimize(study, problem(), 16, slots=12, device="cpu")
        assert refused
        assert summary.slots < 12
        assert_same(study, plenty)

    def test_one_that_does_not_fit_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(*args: Any, **kwargs: Any) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

        monkeypatch.setattr(fused.Population, "train_epoch", none)
        study = run(3, slots=2)
        assert {trial.state for trial in study.trials} == {TrialState.FAIL}
        assert study.trials[0].user_attrs["reason"] == "out of memory on cpu: CUDA out of memory."

    def test_other_errors_come_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: Any, **kwargs: Any) -> Tensor:
            raise RuntimeError("shapes")

        monkeypatch.setattr(fused.Population, "train_epoch", broken)
        study = new_study()
        with pytest.raises(RuntimeError, match="shapes"):
            run(3, study=study)
        assert {trial.state for trial in study.trials} == {TrialState.FAIL}


class TestStorage:
    def test_in_a_file(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/study.db"
        study = run(6, study=new_study(storage=url, study_name="s"))
        again = optuna.load_study(study_name="s", storage=RDBStorage(url))
        assert_same(again, run(6))
        assert again.trials == study.trials
        study.optimize(lambda trial: alone(trial, problem()), n_trials=1)
        assert len(again.trials) == 7

    def test_a_killed_run_goes_on(self, tmp_path: Path) -> None:
        """Killed in the middle, it ends as if nothing had happened."""
        script = textwrap.dedent(
            f"""
            import importlib.util, os, signal, sys, time
            spec = importlib.util.spec_from_file_location("it", {__file__!r})
            it = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(it)
            it.optuna.logging.set_verbosity(it.optuna.logging.ERROR)

            def stop(trial):
                if int(sys.argv[1]) and trial.number == 17:
                    print("waiting", flush=True)
                    time.sleep(600)
                return it.suggest(trial)

            class Prune(it.optuna.pruners.BasePruner):
                def prune(self, study, trial):
                    return trial.number % 2 == 1 and trial.last_step == 1 + trial.number % 3

            study = it.optuna.create_study(
                study_name="s",
                storage="sqlite:///study.db",
                load_if_exists=True,
                pruner=Prune(),
                sampler=it.optuna_ext.SobolSampler(seed=0),
            )
            it.fused.optimize(
                study,
                it.problem(suggest=stop),
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
        assert_same(study, whole)
        assert len(study.trials) == 24

    def test_checkpoints_of_something_else(self, tmp_path: Path) -> None:
        path = tmp_path / "run.pt"
        path.write_text("hello")
        with pytest.raises(ValueError, match="is not one of this program"):
            run(1, checkpoint=path)
        torch.save({"version": 1, "run": "x", "state": {}, "study": "other"}, path)
        with pytest.raises(ValueError, match="but it is of 'other'"):
            run(1, checkpoint=path)


class TestArguments:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "lion"}, "optimizer must be a function or one of .* but it is 'lion'"),
            ({"order": "none"}, "order must be 'own' or 'shared', but it is 'none'"),
            ({"epochs": 0}, "epochs must be at least 1, but it is 0"),
            ({"batch_size": 0}, "batch_size must be at least 1, but it is 0"),
            ({"passes": 0}, "passes must be at least 1, but it is 0"),
            ({"best_of": [3, 1]}, r"best_of must be epochs .* but it is \[3, 1\]"),
            ({"best_of": []}, r"best_of must be epochs .* but it is \[\]"),
            ({"valid": [rows(3), rows(3)]}, "must be lists of one length"),
        ],
    )
    def test_of_problems(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            problem(**changes)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"slots": 0}, "slots must be at least 1, but it is 0"),
            ({"device": "tpu"}, "device must be one of .* but it is 'tpu'"),
            ({"engine": "steam"}, "engine must be one of .* but it is 'steam'"),
            ({"checkpoint_interval": 0}, "checkpoint_interval must be greater than 0 seconds"),
        ],
    )
    def test_of_optimize(self, settings: dict[str, Any], message: str) -> None:
        study = new_study()
        with pytest.raises(ValueError, match=message):
            run(1, study=study, **settings)

    def test_counts_and_objectives(self) -> None:
        with pytest.raises(ValueError, match="n_trials must be at least 1, but it is 0"):
            run(0)
        with pytest.raises(ValueError, match="study must have one objective, but it has 2"):
            run(1, study=optuna.create_study(directions=["minimize"] * 2))

    def test_rows_of_unequal_length(self) -> None:
        with pytest.raises(ValueError, match="they are of lengths 3 and 2"):
            run(1, problem(train=(torch.zeros(3, 2), torch.zeros(2))))

    def test_a_named_optimizer_needs_names(self) -> None:
        with pytest.raises(TypeError, match="optimizer must be a function where"):
            run(1, problem(suggest=lambda trial: 1, model=lambda _: nn.Linear(2, 2), batch_size=8))


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run(4, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "model steps/s" in shown


def test_no_time_is_lost_at_the_end() -> None:
    began = time.perf_counter()
    summary = fused.optimize(new_study(), problem(), 4, device="cpu")
    assert 0 < summary.seconds <= time.perf_counter() - began
    assert summary.trials == 4
    assert summary.model_steps == sum(
        EPOCHS * math.ceil(120 / size) for size in (t.params["batch_size"] for t in run(4).trials)
    )
