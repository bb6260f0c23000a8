"""Splits of the data that must not have rows in common."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Subset
from torch.utils.data import TensorDataset

from optuna_ext.online import check_disjoint


ROWS = torch.arange(20.0).reshape(10, 2)


def test_disjoint_splits_pass() -> None:
    data = TensorDataset(ROWS)
    check_disjoint(t1=ROWS[:4], t2=ROWS[4:6], test=ROWS[6:])
    check_disjoint(t2=ROWS, valid=ROWS[:0])
    check_disjoint(t2=Subset(data, [0, 1]), test=Subset(data, [2, 3]))
    check_disjoint(t2=[0, 1], test=range(2, 5))


def test_what_tunes_may_not_overlap_what_is_reported() -> None:
    data = TensorDataset(ROWS)
    with pytest.raises(ValueError, match="t2 and test .* 2 rows in common, .* row 1 of t2"):
        check_disjoint(t1=ROWS[6:], t2=ROWS[:3], test=ROWS[1:5].clone())
    with pytest.raises(ValueError, match="t2 and test .* 1 row in common, .* row 0 of t2"):
        check_disjoint(t2=Subset(data, [3]), test=Subset(data, [2, 3]))


def test_splits_of_several_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="all tensors, all subsets or all lists .* 'list'"):
        check_disjoint(t2=ROWS, test=[1])
