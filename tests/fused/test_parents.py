from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import BaseTrial
from optuna.trial import FrozenTrial
from optuna.trial import TrialState
import pytest
import torch
from torch import nn

from optuna_ext import fused
from optuna_ext import Hyperband
from optuna_ext import PopulationBasedTrainingSampler
from optuna_ext import SuccessiveHalving
from optuna_ext.lineage import lineage


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

    def test_children_go_on_with_weights_and_momentum(self, toy: Any) -> None:
        about = toy.problem(suggest=self.given, batch_size=None, seed=0, interval=2)
        study = toy.run(9, about, slots=3, study=toy.new_study(sampler=Inheriting(seed=0)))
        assert [[*curve] for curve in toy.curves(study)] == [
            steps for steps in ([1, 2], [3, 4], [5, 6]) for _ in range(3)
        ]
        x, y = toy.rows(120)
        for trial in study.trials[-3:]:
            rates: list[float] = []
            walker = trial
            while True:
                rates.insert(0, walker.params["lr"])
                if "parent" not in walker.user_attrs:
                    break
                walker = study.trials[walker.user_attrs["parent"]]
            torch.manual_seed(0)
            net = toy.model({"units": 5})
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for rate in rates:
                optimizer.param_groups[0]["lr"] = rate
                for _ in range(2):
                    optimizer.zero_grad()
                    toy.losses(net(x), y).mean().backward()
                    optimizer.step()
            with torch.no_grad():
                value = (
                    toy.losses(net(toy.rows(70, seed=1)[0]), toy.rows(70, seed=1)[1]).mean().item()
                )
            assert trial.value == pytest.approx(value, rel=1e-12)

    def test_children_have_dropout_of_their_own(self, toy: Any) -> None:
        """A parent's rate must not take the place of what a sampler explores."""

        def given(trial: BaseTrial) -> dict[str, Any]:
            p = trial.suggest_categorical("p", [0.0, 0.5])
            return {"p": p if trial.number < 3 else 0.5 - p, "lr": 0.1, "momentum": 0.0}

        def net(hyperparameters: dict[str, Any]) -> nn.Module:
            layers = nn.Linear(2, 8), nn.Dropout(hyperparameters["p"]), nn.Linear(8, 2)
            return nn.Sequential(*layers).double()

        seen: list[float] = []
        about = toy.problem(suggest=given, model=net, batch_size=None, seed=0, interval=1)
        trainer = fused.Trainer(about, slots=3, device="cpu", engine="vmap")
        study = toy.new_study(sampler=Inheriting(seed=0))
        for _ in range(2):
            trials = [study.ask() for _ in range(3)]
            trainer.add(trials)
            for trial in trainer.state_dict()["trials"].values():
                (rate,) = [v for k, v in trial["states"][0]["buffers"].items() if "thresh" in k]
                seen.append((int(rate) + 2**31) / 2**32)
            for result in trainer.step():
                study.tell(result.trial, result.final_value)
        wanted = [given(optuna.trial.FixedTrial(t.params, number=t.number)) for t in study.trials]
        assert seen == [w["p"] for w in wanted]
        assert {*seen[:3]} == {*seen[3:]} == {0.0, 0.5}

    def test_a_parent_of_another_shape(self, toy: Any) -> None:
        def given(trial: BaseTrial) -> dict[str, Any]:
            return {**self.given(trial), "units": 5 if trial.number < 3 else 6}

        with pytest.raises(ValueError, match="parent must have a network of the same shapes"):
            toy.run(
                6,
                toy.problem(suggest=given),
                slots=3,
                study=toy.new_study(sampler=Inheriting(seed=0)),
            )

    def test_one_that_is_not_at_hand(self, toy: Any) -> None:
        study = toy.new_study(sampler=Inheriting(seed=0))
        with pytest.raises(ValueError, match=r"trial \d has parent \d: `checkpoint` must be the"):
            toy.run(9, toy.problem(suggest=self.given), slots=1, study=study)


def population(seed: int = 0, **settings: Any) -> PopulationBasedTrainingSampler:
    return PopulationBasedTrainingSampler(population_size=4, seed=seed, **settings)


class TestPopulationBasedTraining:
    """Together with the same seed, a population is the one trained trial by trial."""

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        return {
            "units": 5,
            "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
            "momentum": trial.suggest_categorical("momentum", [0.5, 0.9]),
            "batch_size": 50,
        }

    def one_by_one(self, toy: Any, about: fused.Problem, **settings: Any) -> optuna.Study:
        study: optuna.Study = toy.new_study(sampler=population(**settings))
        kept: dict[int, Any] = {}
        study.optimize(lambda trial: toy.alone(trial, about, kept=kept), n_trials=16)
        return study

    @pytest.mark.parametrize(
        ("settings", "slots"),
        [({}, 1), ({}, 3), ({}, 10), ({"synchronous": False}, 4), ({"exploit": "tournament"}, 4)],
    )
    def test_the_same_lineage_and_values(
        self, toy: Any, settings: dict[str, Any], slots: int
    ) -> None:
        about = toy.problem(suggest=self.suggest, interval=2)
        theirs = self.one_by_one(toy, about, **settings)
        ours = toy.run(16, about, slots=slots, study=toy.new_study(sampler=population(**settings)))
        toy.assert_same(ours, theirs)
        parents = [t.user_attrs.get("parent") for t in ours.trials]
        assert parents == [t.user_attrs.get("parent") for t in theirs.trials]
        assert {n - p for n, p in enumerate(parents) if p is not None} > {4}  # some were replaced
        assert [part.steps for part in lineage(ours, 15)] == [
            range(first, first + 2) for first in (1, 3, 5, 7)
        ]

    def test_another_run_goes_on(self, toy: Any, tmp_path: Path) -> None:
        about = toy.problem(suggest=self.suggest, interval=2)
        ours = toy.new_study(sampler=population())
        for n_trials in (6, 2, 8):
            toy.run(n_trials, about, slots=4, study=ours, checkpoint=tmp_path / "run.pt")
            assert not fused.interrupted(ours, tmp_path / "run.pt")
        toy.assert_same(ours, self.one_by_one(toy, about))

    @pytest.mark.parametrize("epochs", [2, 3])
    def test_another_trainer_goes_on(self, toy: Any, epochs: int) -> None:
        """Between two generations and in the middle of one."""
        study = toy.new_study(sampler=population())
        about = toy.problem(suggest=self.suggest, interval=2)
        trainer = fused.Trainer(about, slots=4, device="cpu", engine="vmap")
        for epoch in range(8):
            if epoch == epochs:
                state, running = trainer.state_dict(), trainer.trials
                trainer = fused.Trainer(about, slots=4, device="cpu", engine="vmap")
                assert trainer.load_state_dict(state, running) == []
            if not trainer.trials:
                trainer.add([study.ask() for _ in range(4)])
            for result in trainer.step():
                result.trial.report(result.value, result.step)
                if result.is_over:
                    study.tell(result.trial, result.final_value)
        toy.assert_same(study, self.one_by_one(toy, about))

    def test_the_nearest_ancestor_after_a_crash(self, toy: Any, tmp_path: Path) -> None:
        """Generations that a checkpoint does not know are lost, but nobody fails."""
        study = toy.new_study(sampler=population())
        about = toy.problem(suggest=self.suggest, interval=1)
        trainer = fused.Trainer(about, slots=4, device="cpu", engine="vmap")

        def generation(trainer: fused.Trainer) -> None:
            trainer.add([study.ask() for _ in range(4)])
            for result in trainer.step():
                study.tell(result.trial, result.final_value)

        generation(trainer)
        state = trainer.state_dict()
        generation(trainer)
        again = fused.Trainer(about, slots=4, device="cpu", engine="vmap")
        again.load_state_dict(state, [])
        generation(again)
        for trial in study.trials[8:]:
            assert trial.user_attrs["parent"] in range(4, 8)
            assert trial.user_attrs["resumed"]["trial"] in range(4)
            assert [*trial.intermediate_values] == []
            assert trial.value is not None
        with pytest.raises(ValueError, match="`checkpoint` must be the file of the run"):
            generation(fused.Trainer(about, slots=4, device="cpu"))

    def test_members_whose_weights_a_crash_has_cost_are_born_again(
        self, toy: Any, tmp_path: Path
    ) -> None:
        """Half of the first generation ends between the last checkpoint and the crash."""
        study = toy.new_study(sampler=population())
        about = toy.problem(suggest=self.suggest, interval=1)
        settings: dict[str, Any] = {"slots": 2, "study": study, "checkpoint": tmp_path / "run.pt"}

        def crash(*_: Any) -> None:
            if len(study.trials) == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            toy.run(16, about, **settings, checkpoint_interval=1e-9, after_epoch=crash)
        toy.run(16, about, **settings)
        states = [trial.state.name for trial in study.trials]
        assert len(states) == 16
        assert set(states[:4] + states[8:]) == {"COMPLETE"}
        assert 0 < states[4:8].count("FAIL") < 4
        for trial in study.trials[12:]:
            assert lineage(study, trial)[0].trial in range(2)

    def test_memory_is_not_kept_for_nothing(self, toy: Any) -> None:
        study = toy.new_study(sampler=population())
        trainer = fused.Trainer(
            toy.problem(suggest=self.suggest, interval=1), slots=2, device="cpu", engine="vmap"
        )
        for _ in range(10):
            trainer.add([study.ask() for _ in range(2)])
            for result in trainer.step():
                study.tell(result.trial, result.final_value)
            kept = trainer.state_dict()["parents"]["known"]
            assert min(kept) >= len(study.trials) - 8  # two generations


class TestPromotion:
    def given(self, trial: BaseTrial) -> dict[str, Any]:
        lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        return {"units": 5, "lr": lr, "momentum": 0.9, "batch_size": 50}

    def new_study(self, toy: Any, halving: SuccessiveHalving | Hyperband) -> optuna.Study:
        study: optuna.Study = toy.new_study(sampler=halving.sampler, pruner=halving.pruner)
        return study

    def halving(self, **settings: Any) -> SuccessiveHalving:
        base = optuna.samplers.RandomSampler(seed=0)
        return SuccessiveHalving(max_resource=8, min_resource=1, base_sampler=base, **settings)

    def test_one_slot_is_the_ordinary_study(self, toy: Any) -> None:
        about = toy.problem(suggest=self.given, epochs=8, seed=0)
        theirs, ours = (self.new_study(toy, self.halving()) for _ in range(2))
        kept: dict[int, Any] = {}
        theirs.optimize(lambda trial: toy.alone(trial, about, seed=0, kept=kept), n_trials=24)
        toy.assert_same(toy.run(24, about, slots=1, study=ours), theirs)
        assert sum("parent" in trial.user_attrs for trial in ours.trials) > 6

    @pytest.mark.parametrize("synchronous", [False, True])
    def test_who_was_paused_goes_on_as_if_not(self, toy: Any, synchronous: bool) -> None:
        about = toy.problem(suggest=self.given, epochs=8, seed=0)
        study = self.new_study(toy, self.halving(synchronous=synchronous))
        toy.run(60, about, slots=8, study=study)
        whole = [t for t in study.trials if t.state == TrialState.COMPLETE]
        assert whole
        for trial in whole:
            curve: dict[int, float] = {}
            for part in lineage(study, trial):
                curve |= study.trials[part.trial].intermediate_values
            alone = toy.new_study()
            alone.enqueue_trial(trial.params)
            alone.optimize(lambda t: toy.alone(t, about, seed=0), n_trials=1)
            assert alone.trials[0].intermediate_values == pytest.approx(curve, rel=1e-12)

    def test_hyperband_in_two_runs(self, toy: Any, tmp_path: Path) -> None:
        about = toy.problem(suggest=self.given, epochs=4, seed=0)
        hyperband = Hyperband(max_resource=4, base_sampler=optuna.samplers.RandomSampler(seed=0))
        study = self.new_study(toy, hyperband)
        for _ in range(2):
            toy.run(15, about, slots=5, study=study, checkpoint=tmp_path / "run.pt")
        assert len(study.trials) == 30
        promoted = [t for t in study.trials if "parent" in t.user_attrs]
        assert {t.state for t in promoted} == {TrialState.COMPLETE, TrialState.PRUNED}
        assert any(t.number >= 15 > t.user_attrs["parent"] for t in promoted)

    def test_dropout_goes_on_with_new_masks(self, toy: Any) -> None:
        """Paused and promoted, a network drops what it would have dropped without a pause."""

        def net(hyperparameters: dict[str, Any]) -> nn.Module:
            return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()

        about = toy.problem(suggest=self.given, model=net, epochs=8, seed=0)
        study = self.new_study(toy, self.halving())
        toy.run(30, about, slots=3, study=study)
        best = next(t for t in study.trials if t.state == TrialState.COMPLETE)
        whole = toy.new_study()
        whole.enqueue_trial(best.params)
        toy.run(1, about, study=whole)
        assert whole.best_value == pytest.approx(best.value, rel=1e-12)

    def test_a_parent_that_has_trained_it_all(self, toy: Any) -> None:
        study = toy.new_study()
        about = toy.problem(suggest=self.given, epochs=2)
        trainer = fused.Trainer(about, slots=2, device="cpu", engine="vmap")
        trainer.add([study.ask()])
        trainer.step()
        (first,) = trainer.step()
        study.tell(first.trial, first.final_value)
        study.enqueue_trial({"lr": 0.1}, user_attrs={"parent": 0})
        (second,) = trainer.add([study.ask()])
        assert second.is_over
        assert second.final_value == first.final_value
        assert trainer.room == 2
