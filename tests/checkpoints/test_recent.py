"""What is read from memory is what the file holds, and nobody's training changes it."""

from __future__ import annotations

import collections
from pathlib import Path
import pickle
from typing import Any

import numpy as np
from optuna.trial import FixedTrial
import pytest
import torch
from torch import nn
from torch import Tensor

from optuna_ext.checkpoints import _file
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.checkpoints._recent import Recent


def content(device: str = "cpu") -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(device)
    state = {
        "model": model.state_dict(),
        "array": np.arange(6.0).reshape(2, 3),
        "counter": collections.Counter("abba"),
        "nested": ({1: [torch.ones(2, device=device)]}, {3, 4}, b"5", None, 1j),
    }
    plain: dict[str, Any] = _file.plain({"format": _file.FORMAT, **state}, name="state")
    return plain


def loaded(recent: Recent, saved: dict[str, Any]) -> dict[str, Any]:
    file, size, sha256 = _file.dump(saved)
    with file:
        recent.put(sha256, saved, size)
        return _file.load(file, size=size, sha256=sha256, recent=recent)


def described(value: Any) -> Any:
    """All that can be compared with ``==``, with its types."""
    if isinstance(value, Tensor):
        return str(value.device), str(value.dtype), value.tolist()
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.tolist()
    if isinstance(value, dict):
        inside = [(key, described(entry)) for key, entry in value.items()]
        return type(value), inside, described(getattr(value, "_metadata", None))
    if isinstance(value, list | tuple):
        return type(value), [described(entry) for entry in value]
    return type(value), value


def test_memory_gives_what_the_file_gives(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = content(device)
    expected = described(loaded(Recent(0), saved))
    monkeypatch.setattr(_file, "_unpickled", None)
    assert described(loaded(Recent(1 << 20), saved)) == expected


def test_nobody_shares_what_is_kept() -> None:
    recent, saved = Recent(1 << 20), content()
    before = described(loaded(Recent(0), saved))
    file, size, sha256 = _file.dump(saved)
    recent.put(sha256, saved, size)
    saved["model"]["0.weight"].zero_()
    for _ in range(2):
        found = _file.load(file, size=size, sha256=sha256, recent=recent)
        file.seek(0)
        assert described(found) == before
        found["nested"][0][1][0].zero_()
        found["array"][:] = 0
        found["model"]._metadata.clear()
    file.close()


def test_the_oldest_give_way() -> None:
    recent = Recent(100)
    for name, size in (("a", 40), ("b", 40), ("a", 40), ("c", 40), ("too large", 101)):
        recent.put(name, {"name": name}, size)
    assert [recent.get(name) for name in ("a", "b", "c", "too large")] == [
        {"name": "a"},
        None,
        {"name": "c"},
        None,
    ]


def test_a_pickle_leaves_it_behind() -> None:
    recent = Recent(100)
    recent.put("a", {}, 1)
    assert pickle.loads(pickle.dumps(recent)).get("a") is None


def test_a_pickled_store_reads_the_file(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    trial = FixedTrial({})
    store = CheckpointStore(tmp_path)
    store.resume(trial, model=model).save(1)
    pickle.loads(pickle.dumps(store)).resume(trial, model=other)
    assert torch.equal(model.weight, other.weight)
