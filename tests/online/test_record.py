from __future__ import annotations

from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FixedTrial
import pytest
import torch
from torch.utils.data import Subset
from torch.utils.data import TensorDataset

from optuna_ext import HypergradientSGD
from optuna_ext import Schedule
from optuna_ext.online import check_disjoint
from optuna_ext.online import record
from optuna_ext.online import recorded
from optuna_ext.online.hypergradient import RateRecorder


class Tuned:
    schedule: Schedule = Schedule({step: {"lr": 1 / step} for step in range(1, 1001)}, last=1200)


def test_a_schedule_is_kept_thinned_and_whole(tmp_path: Path) -> None:
    store = FileSystemArtifactStore(str(tmp_path))
    study = optuna.create_study()

    def objective(trial: optuna.Trial) -> float:
        record(trial, Tuned(), artifact_store=store, n_points=10)
        return 0.0

    study.optimize(objective, n_trials=1)
    thinned = recorded(study.trials[0])
    assert len(list(thinned)) == 10
    assert thinned.last == 1200
    assert thinned.at(1) == {"lr": 1.0}
    assert thinned.at(901) == {"lr": 1 / 901}
    identifier: str = study.trials[0].user_attrs["optuna_ext:schedule_artifact"]
    assert Schedule.from_json((tmp_path / identifier).read_text()) == Tuned.schedule


def test_the_dashboard_shows_all_trials_in_one_panel() -> None:
    pytest.importorskip("optuna_dashboard")
    study = optuna.create_study()
    study.optimize(lambda trial: record(trial, Tuned()) or 0.0, n_trials=2)  # type: ignore[func-returns-value]
    attributes = study._storage.get_study_system_attrs(study._study_id)
    panel = "".join(str(value) for name, value in attributes.items() if "schedules" in name)
    assert "trial 0" in panel
    assert "trial 1" in panel


def test_a_fixed_trial_gets_the_attribute() -> None:
    trial = FixedTrial({})
    record(trial, Tuned(), n_points=5)
    assert len(list(Schedule.from_dict(trial.user_attrs["optuna_ext:schedule"]))) == 5


def test_a_trial_without_a_schedule_says_so() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: 0.0, n_trials=1)
    with pytest.raises(ValueError, match="Trial 0 has no schedule: call `record`"):
        recorded(study.trials[0])


def test_rates_of_every_step_and_group() -> None:
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = HypergradientSGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    recorder = RateRecorder(optimizer)
    rates = []
    for _ in range(3):
        a.grad, b.grad = torch.ones(1), -torch.ones(1)
        optimizer.step()
        rates.append({f"lr/{i}": group["lr"] for i, group in enumerate(optimizer.param_groups)})
    assert [recorder.schedule.at(step) for step in (1, 2, 3)] == rates
    assert rates[2]["lr/0"] > rates[1]["lr/0"] > 0.1


def test_splits_in_common_are_refused() -> None:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    check_disjoint(t1=x[:4], t2=x[4:6], test=x[6:])
    with pytest.raises(ValueError, match="must be disjoint, but have 2 rows in common"):
        check_disjoint(t1=x[:4], t2=x[4:8], test=x[6:])
    data = TensorDataset(x)
    with pytest.raises(ValueError, match="have 1 row in common, the first of them row 2 of t2"):
        check_disjoint(t2=Subset(data, [3, 4, 5]), test=Subset(data, [5, 6]))
    with pytest.raises(TypeError, match=r"all of .*|must be all tensors.*\['Tensor', 'list'\]"):
        check_disjoint(t2=x, test=[1, 2])
