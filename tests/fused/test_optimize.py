from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import optuna
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

from optuna_ext import fused


class TestSameAsAlone:
    @pytest.mark.parametrize("slots", [1, 5, 24])
    def test_values(self, toy: Any, slots: int, device: str) -> None:
        theirs = toy.new_study()
        alone = toy.problem()
        theirs.optimize(lambda trial: toy.alone(trial, alone, device=device), n_trials=24)
        ours = toy.run(24, slots=slots, device=device, engine="auto")
        # A GPU sums up in another order for each size of a product.
        toy.assert_same(ours, theirs, tolerance=1e-12 if device == "cpu" else 1e-9)
        assert {trial.state for trial in ours.trials} == {TrialState.COMPLETE}

    @pytest.mark.parametrize("engine", ["stack", "vmap", "grad", "loop"])
    def test_engines(self, toy: Any, engine: str) -> None:
        theirs = toy.new_study()
        theirs.optimize(lambda trial: toy.alone(trial, toy.problem()), n_trials=6)
        toy.assert_same(toy.run(6, engine=engine), theirs)

    def test_a_loader_and_a_named_optimizer(self, toy: Any) -> None:
        about = toy.problem(seed=3)
        loaders = {
            name: DataLoader(TensorDataset(*getattr(about, name)), batch_size=50, shuffle=True)
            for name in ("train", "valid")
        }
        loaded = toy.problem(seed=3, batch_size="auto", **loaders)
        trial = {"units": 5, "lr": 0.1, "momentum": 0.5, "batch_size": 50}
        study = toy.new_study()
        study.enqueue_trial(trial)
        toy.run(1, loaded, study=study)
        assert study.best_value == pytest.approx(
            toy.alone(FixedTrial(trial), about, seed=3), rel=1e-12
        )

    def test_adam_by_its_betas(self, toy: Any) -> None:
        def given(trial: BaseTrial) -> dict[str, Any]:
            return {**toy.suggest(trial), "beta1": 0.5, "eps": 1e-3}

        def adam(parameters: Any, h: dict[str, Any]) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr=h["lr"], betas=(0.5, 0.999), eps=1e-3)

        named = toy.run(6, toy.problem(suggest=given, optimizer="adam"))
        toy.assert_same(named, toy.run(6, toy.problem(suggest=given, optimizer=adam)))

    def test_folds_are_averaged(self, toy: Any) -> None:
        train = [toy.rows(120), toy.rows(90, seed=7)]
        valid = [toy.rows(70, seed=1), toy.rows(40, seed=8)]
        both = toy.run(5, toy.problem(train=train, valid=valid))
        ones = [toy.run(5, toy.problem(train=train[i], valid=valid[i])) for i in range(2)]
        for fold, one, two in zip(toy.curves(both), *map(toy.curves, ones), strict=True):
            for step, value in fold.items():
                assert value == pytest.approx((one[step] + two[step]) / 2, rel=1e-12)

    def test_a_mean_loss_is_enough(self, toy: Any) -> None:
        mean = toy.problem(loss=lambda outputs, y: cross_entropy(outputs, y))
        toy.assert_same(toy.run(8, mean), toy.run(8))

    def test_passes_epochs_and_schedules_by_trial(self, toy: Any) -> None:
        about = toy.problem(
            epochs=lambda h: 2 if h["units"] else 3,
            passes=lambda h: 2 if h["units"] else 1,
            schedule=lambda h: lambda epoch: 0.5**epoch,
        )
        study = toy.run(8, about)
        for trial in study.trials:
            assert len(trial.intermediate_values) == (2 if trial.params["units"] else 3)
            assert trial.user_attrs["epochs"] == len(trial.intermediate_values)
        slower = toy.run(
            8, dataclasses.replace(about, schedule=lambda h: lambda epoch: 0.1**epoch)
        )
        for one, two in zip(toy.curves(study), toy.curves(slower), strict=True):
            assert one[1] == two[1]  # the first epoch has the factor 1
            assert one[2] != two[2]

    def test_a_shared_order_is_the_same_for_all(self, toy: Any) -> None:
        study = toy.new_study()
        for _ in range(3):
            study.enqueue_trial({"units": 3, "lr": 0.1, "momentum": 0.5, "batch_size": 16})
        one, two, three = toy.curves(toy.run(3, toy.problem(order="shared", seed=0), study=study))
        assert one == two == three


class TestTrials:
    def test_what_is_recorded(self, toy: Any) -> None:
        def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
            return outputs.argmax(1) == y

        about = toy.problem(
            metrics={"accuracy": accuracy, "loss": toy.losses}, test=toy.rows(50, seed=2)
        )
        study = toy.run(4, about, study=toy.new_study(direction="maximize"))
        for trial in study.trials:
            attrs = trial.user_attrs
            assert trial.value == trial.intermediate_values[toy.EPOCHS] == attrs["valid_accuracy"]
            assert (trial.value * 70) % 1 == pytest.approx(0, abs=1e-9)
            assert attrs["device"] == "cpu"
            assert attrs["epochs"] == toy.EPOCHS
            assert attrs["n_parameters"] == sum(
                p.numel() for p in toy.model(trial.params).parameters()
            )
            assert {"train_loss", "train_seconds", "test_loss", "valid_loss"} <= attrs.keys()
            assert (attrs["test_accuracy"] * 50) % 1 == pytest.approx(0, abs=1e-9)

    def test_the_test_rows_do_not_touch_the_values(self, toy: Any) -> None:
        one, two = (toy.run(4, toy.problem(test=toy.rows(50, seed=seed))) for seed in (2, 3))
        assert toy.curves(one) == toy.curves(two)
        assert one.trials[0].user_attrs["test_loss"] != two.trials[0].user_attrs["test_loss"]

    def test_the_best_of_some_epochs(self, toy: Any) -> None:
        every = toy.run(8)
        some = toy.run(8, toy.problem(best_of=[1, 3, 9]))
        for full, trial in zip(toy.curves(every), some.trials, strict=True):
            assert trial.intermediate_values == {1: full[1], 3: full[3]}
            assert trial.value == min(full[1], full[3])
            assert trial.user_attrs["best_epoch"] == (1 if full[1] <= full[3] else 3)
            assert trial.user_attrs["epochs"] == 3
        with pytest.raises(
            ValueError, match="best_of must have an epoch up to 4, but it has none"
        ):
            toy.run(1, toy.problem(best_of=[9]))

    def test_one_that_explodes_fails_alone(self, toy: Any) -> None:
        def wild(trial: BaseTrial) -> dict[str, Any]:
            lr = 1e308 if trial.number == 3 else 0.1
            return {"units": 5, "lr": lr, "momentum": 0.0, "batch_size": 50}

        def tame(trial: BaseTrial) -> dict[str, Any]:
            return wild(trial) | {"lr": 0.1}

        study = toy.run(8, toy.problem(suggest=wild))
        others = toy.run(8, toy.problem(suggest=tame))
        assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [3]
        assert study.trials[3].user_attrs["reason"].startswith("diverged in epoch ")
        for number in {*range(8)} - {3}:
            assert toy.curves(study)[number] == toy.curves(others)[number]  # bitwise

    def test_pruning_changes_nobody_else(self, toy: Any) -> None:
        class PruneOdd(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                return trial.number % 2 == 1 and trial.last_step == 2

        def fixed(trial: BaseTrial) -> dict[str, Any]:
            return {"units": 5, "lr": 0.1, "momentum": 0.0, "batch_size": 50}

        about = toy.problem(suggest=fixed)
        pruned = toy.run(12, about, slots=6, study=toy.new_study(pruner=PruneOdd()))
        full = toy.run(12, about, slots=6)
        for number, (one, two) in enumerate(
            zip(toy.curves(pruned), toy.curves(full), strict=True)
        ):
            if number % 2:
                assert pruned.trials[number].state == TrialState.PRUNED
                assert pruned.trials[number].value == one[2]
                assert [*one] == [1, 2]
            elif number < 6:
                assert one == two  # bitwise
            else:  # half of the slots are dropped in the end, where another engine is faster
                assert one == pytest.approx(two, rel=1e-12)

    def test_slots_are_refilled_at_once(self, toy: Any) -> None:
        class PruneEarly(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                return trial.number % 3 != 0

        at_once: list[int] = []

        def note(study: optuna.Study, trial: FrozenTrial) -> None:
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            at_once.append(len(running))

        study = toy.new_study(pruner=PruneEarly())
        toy.run(40, study=study, slots=8, callbacks=[note])
        assert len(study.trials) == 40
        assert max(at_once) < 8
        begun = [t.datetime_start for t in study.trials]
        ended = [t.datetime_complete for t in study.trials]
        assert begun[8] is not None
        assert ended[0] is not None
        assert begun[8] < ended[0]  # the ninth began before the first had ended

    def test_an_engine_is_chosen_anew_once_a_group_has_doubled(self, toy: Any) -> None:
        trainer = fused.Trainer(toy.problem(), slots=16)
        study = toy.new_study()
        point = {"units": 5, "lr": 0.1, "momentum": 0.5, "batch_size": 50}
        reasons = []
        for n in (2, 1, 5):  # each time there is not enough room
            for _ in range(n):
                study.enqueue_trial(point)
            trainer.add([study.ask() for _ in range(n)])
            trainer.step()
            (reason,) = trainer.engines.values()
            reasons.append(reason)
        assert reasons[0] == reasons[1] != reasons[2]
        assert not [reason for reason in reasons if "asked for" in reason]

    def test_why_an_engine_was_chosen_is_known_after_growth_before_the_first_step(
        self, toy: Any
    ) -> None:
        trainer = fused.Trainer(toy.problem(), slots=16)
        study = toy.new_study()
        point = {"units": 5, "lr": 0.1, "momentum": 0.5, "batch_size": 50}
        for n in (4, 2):  # the first of which leave not enough room
            for _ in range(n):
                study.enqueue_trial(point)
            trainer.add([study.ask() for _ in range(n)])
        trainer.step()
        (reason,) = trainer.engines.values()
        assert "per member and step" in reason

    def test_reports_come_before_decisions(self, toy: Any) -> None:
        seen: list[int] = []

        class Count(optuna.pruners.BasePruner):
            def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
                assert trial.last_step is not None
                trials = study.get_trials(deepcopy=False)
                seen.append(sum(trial.last_step in t.intermediate_values for t in trials))
                return False

        toy.run(7, study=toy.new_study(pruner=Count()))
        assert set(seen) == {7}

    def test_what_the_functions_raise(self, toy: Any) -> None:
        def picky(trial: BaseTrial) -> dict[str, Any]:
            if trial.number == 1:
                raise optuna.TrialPruned
            if trial.number == 2:
                raise ArithmeticError("too\nhot")
            return dict(toy.suggest(trial))

        study = toy.run(5, toy.problem(suggest=picky), catch=ArithmeticError, slots=2)
        assert [trial.state for trial in study.trials] == [
            TrialState.COMPLETE,
            TrialState.PRUNED,
            TrialState.FAIL,
            TrialState.COMPLETE,
            TrialState.COMPLETE,
        ]
        assert study.trials[2].user_attrs == {"reason": "ArithmeticError: too hot"}
        study = toy.new_study()
        with pytest.raises(ArithmeticError):
            toy.run(5, toy.problem(suggest=picky), study=study)
        assert [t.state for t in study.trials] == [TrialState.FAIL] * 3

    def test_stop_and_timeout(self, toy: Any) -> None:
        def stop(study: optuna.Study, trial: FrozenTrial) -> None:
            study.stop()

        assert len(toy.run(50, slots=4, callbacks=[stop]).trials) in (4, 8)
        assert toy.run(50, slots=4, timeout=0).trials == []

    def test_enqueued_trials_come_first(self, toy: Any) -> None:
        study = toy.new_study()
        point = {"units": 3, "lr": 0.25, "momentum": 0.0, "batch_size": 16}
        study.enqueue_trial(point)
        toy.run(5, study=study)
        assert study.trials[0].params == point
        assert len(study.trials) == 5


class TestArguments:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "lion"}, "optimizer must be a function or one of .* but it is 'lion'"),
            ({"order": "none"}, "order must be 'own' or 'shared', but it is 'none'"),
            ({"epochs": 0}, "`epochs` must be at least 1, but got 0"),
            ({"batch_size": 0}, "`batch_size` must be at least 1, but got 0"),
            ({"interval": 0}, "`interval` must be at least 1, but got 0"),
            ({"interval": 1, "best_of": [1]}, "interval must be None where the best"),
            ({"passes": 0}, "`passes` must be at least 1, but got 0"),
            ({"best_of": [3, 1]}, r"best_of must be epochs .* but it is \[3, 1\]"),
            ({"best_of": []}, r"best_of must be epochs .* but it is \[\]"),
            ({"valid": [(torch.zeros(3, 2), torch.zeros(3))] * 2}, "must be lists of one length"),
        ],
    )
    def test_of_problems(self, toy: Any, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            toy.problem(**changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"epochs": 2.5}, "`epochs` must be an integer, but got 2.5"),
            ({"train": ([0.0], [1])}, "train must be a tuple of two tensors, .* but it is tuple"),
            ({"valid": None}, "valid must be a tuple of two tensors, .* but it is NoneType"),
        ],
    )
    def test_of_wrong_types(self, toy: Any, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(TypeError, match=message):
            toy.problem(**changes)

    @pytest.mark.parametrize("name", ["epochs", "passes"])
    def test_of_one_trial(self, toy: Any, name: str) -> None:
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but got 0"):
            toy.run(1, toy.problem(**{name: lambda _: 0}))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"slots": 0}, "slots must be at least 1, but it is 0"),
            ({"device": "tpu"}, "device must be one of .* but it is 'tpu'"),
            ({"engine": "steam"}, "engine must be one of .* but it is 'steam'"),
            ({"checkpoint_interval": 0}, "checkpoint_interval must be greater than 0 seconds"),
        ],
    )
    def test_of_optimize(self, toy: Any, settings: dict[str, Any], message: str) -> None:
        study = toy.new_study()
        with pytest.raises(ValueError, match=message):
            toy.run(1, study=study, **settings)

    def test_counts_and_objectives(self, toy: Any) -> None:
        with pytest.raises(ValueError, match="n_trials must be at least 1, but it is 0"):
            toy.run(0)
        with pytest.raises(ValueError, match="study must have one objective, but it has 2"):
            toy.run(1, study=optuna.create_study(directions=["minimize"] * 2))

    def test_rows_of_unequal_length(self, toy: Any) -> None:
        with pytest.raises(ValueError, match="they are of lengths 3 and 2"):
            toy.run(1, toy.problem(train=(torch.zeros(3, 2), torch.zeros(2))))

    def test_a_named_optimizer_needs_names(self, toy: Any) -> None:
        with pytest.raises(TypeError, match="optimizer must be a function where"):
            toy.run(
                1,
                toy.problem(
                    suggest=lambda trial: 1, model=lambda _: nn.Linear(2, 2), batch_size=8
                ),
            )


def test_the_bar(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy.run(4, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert " trials/s" in shown
    assert "model steps/s" in shown


def test_no_time_is_lost_at_the_end(toy: Any) -> None:
    began = time.perf_counter()
    summary = fused.optimize(toy.new_study(), toy.problem(), 4, device="cpu")
    assert 0 < summary.seconds <= time.perf_counter() - began
    assert summary.trials == 4
    assert 1_000 < summary.bytes_per_slot < 500_000
    assert summary.model_steps == sum(
        toy.EPOCHS * math.ceil(120 / size)
        for size in (t.params["batch_size"] for t in toy.run(4).trials)
    )
