"""A training that stops and goes on is the one that does not stop."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any
from typing import TYPE_CHECKING

from optuna.trial import FixedTrial
import pytest
import torch
from torch import nn
from torch.optim import Adam
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from optuna_ext import CheckpointStore
from optuna_ext import Schedule
from optuna_ext import T1T2


if TYPE_CHECKING:
    from tests.online.t1t2.conftest import Lab

MODES: dict[str, dict[str, Any]] = {
    "one step": {"every": 2},
    "held length": {"every": 2, "hold_length": True},
    "trace": {"every": 3, "trace": 0.9},
    "unroll": {"every": 4, "unroll": 3},
    "bfloat16": {"every": 2, "amp": True},
    "followed": {
        "schedule": Schedule({1: {"input_noise": 0.1}, 6: {"input_noise": 0.3}}),
        "n_steps": None,
    },
}


class Training:
    """A training with random numbers of its own in the net and a changing learning rate."""

    def __init__(self, lab: Lab, options: dict[str, Any]) -> None:
        self.lab = lab
        first, *others = lab.net(torch.float32)
        self.net = nn.Sequential(first, nn.BatchNorm1d(6), nn.Dropout(0.2), *others)
        self.optimizer: Optimizer = Adam(self.net.parameters(), 0.01)
        self.scheduler = StepLR(self.optimizer, step_size=1, gamma=0.7)
        given = {"n_steps": 8} | options
        self.tuner = T1T2(self.net, self.optimizer, lab.everything(), **given)

    @property
    def parts(self) -> dict[str, Any]:
        return {
            "tuner": self.tuner,  # in any order
            "model": self.net,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def run(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            torch.manual_seed(i)
            x, y = self.lab.batches[i]
            valid_x, valid_y = self.lab.valid
            self.tuner.step((x.float(), y), (valid_x.float(), valid_y))
            self.scheduler.step()

    def result(self) -> list[Any]:
        weights = [value.tolist() for value in self.net.state_dict().values()]
        return [weights, self.tuner.schedule, self.tuner.hypergradients, self.tuner.n_skipped]


@pytest.mark.parametrize("mode", MODES)
def test_it_goes_on_bit_for_bit_from_every_step(lab: Lab, mode: str) -> None:
    whole = Training(lab, MODES[mode])
    files = []
    for i in range(8):
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in whole.parts.items()}, file)
        files.append(file)
        whole.run(i, i + 1)
    for i, file in enumerate(files):
        file.seek(0)
        states = torch.load(file, weights_only=True)
        resumed = Training(lab, MODES[mode])
        for name, part in resumed.parts.items():
            part.load_state_dict(states[name])
        resumed.run(i, 8)
        assert resumed.result() == whole.result()


def test_a_state_in_memory_does_not_change_with_the_training(lab: Lab) -> None:
    whole = Training(lab, MODES["unroll"])
    whole.run(0, 6)
    state = whole.tuner.state_dict()
    others = {n: copy.deepcopy(p.state_dict()) for n, p in whole.parts.items() if n != "tuner"}
    whole.run(6, 8)
    for _ in range(2):
        resumed = Training(lab, MODES["unroll"])
        for name, part in resumed.parts.items():
            part.load_state_dict(state if name == "tuner" else copy.deepcopy(others[name]))
        resumed.run(6, 8)
        assert resumed.result() == whole.result()


def test_it_goes_on_from_a_checkpoint(lab: Lab, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))

    def run(trial: Any, n: int) -> Training:
        training = Training(lab, MODES["unroll"])
        kept = store.resume(trial, **training.parts)
        training.run(kept.step, kept.step + n)
        kept.save(kept.step + n)
        return training

    trial = FixedTrial({})
    run(trial, 2)  # in the midst of the steps that are looked back on
    resumed, whole = run(trial, 6), run(FixedTrial({}), 8)
    assert resumed.result() == whole.result()


def test_half_a_step_is_not_saved(lab: Lab) -> None:
    tuner = lab.tune(every=2)
    tuner.backward(lab.batches[0])
    with pytest.raises(RuntimeError, match="Step 1 is half done: save after `update`"):
        tuner.state_dict()
    tuner.optimizer.step()
    tuner.update()
    assert tuner.state_dict()["n_steps"] == 1
