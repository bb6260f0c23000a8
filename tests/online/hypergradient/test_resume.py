"""A training that stops and goes on is the one that does not stop."""

from __future__ import annotations

import copy
import io
from typing import Any
from typing import TYPE_CHECKING

import pytest
import torch


if TYPE_CHECKING:
    from tests.online.hypergradient.conftest import Case
    from tests.online.hypergradient.conftest import Lab

Options = dict[str, Any]
RULES = ("exponential", "multiplicative", "additive")


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_round_trip_through_a_file(lab: Lab, case: Case, rule: str) -> None:
    kind, options = case
    batches = lab.batches(12)
    straight = lab.net()
    options = {"lr": 1e-3, "rule": rule, **options}
    whole = lab.ours[kind](straight.parameters(), **options)
    expected = lab.train(straight, whole, batches)

    net = lab.net()
    optimizer = lab.ours[kind](net.parameters(), **options)
    lab.train(net, optimizer, batches[:6])
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    resumed = lab.net()
    resumed.load_state_dict(kept["net"])
    again = lab.ours[kind](resumed.parameters(), **options)
    again.load_state_dict(kept["optimizer"])
    assert torch.equal(lab.train(resumed, again, batches[6:]), expected)
    assert again.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


def test_it_goes_on_from_torchs_own_state(lab: Lab, kind: str) -> None:
    batches = lab.batches(10)
    options: Options = {"lr": 0.01, "momentum": 0.9} if kind == "sgd" else {"lr": 0.01}
    net = lab.net()
    theirs = lab.torchs[kind](net.parameters(), foreach=True, **options)
    lab.train(net, theirs, batches[:5])
    copied = copy.deepcopy(net)
    ours = lab.ours[kind](copied.parameters(), hyper_lr=0.0, **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert torch.equal(lab.train(copied, ours, batches[5:]), lab.train(net, theirs, batches[5:]))


def test_a_copy_goes_on_as_the_original(lab: Lab, kind: str) -> None:
    net = lab.net()
    optimizer = lab.ours[kind](net.parameters(), lr=1e-3)
    lab.train(net, optimizer, lab.batches(5))
    other_net, other = copy.deepcopy((net, optimizer))
    a, b = lab.train(net, optimizer, lab.batches(5)), lab.train(other_net, other, lab.batches(5))
    assert torch.equal(a, b)
    assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"] != 1e-3
