"""What is kept in memory or in a file is what was saved, and nobody's training changes it."""

from __future__ import annotations

import collections
from collections.abc import Callable
import copy
import math
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
from optuna_ext.checkpoints._packed import pack
from optuna_ext.checkpoints._packed import Packed
from optuna_ext.checkpoints._recent import Recent


def content(device: str = "cpu") -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(device)
    return {
        "model": model.state_dict(),
        "array": np.arange(6.0).reshape(2, 3),
        "counter": collections.Counter("abba"),
        "nested": ({1: [torch.ones(2, device=device)]}, {3, 4}, b"5", None, 1j),
        "empty": [torch.ones(0, 2), torch.tensor(7.0), torch.zeros(0)],
        "views": [torch.arange(6).view(2, 3).T, torch.ones(1).expand(2, 2), torch.ones(9)[::3]],
        "kinds": [torch.ones(2).to(kind) for kind in KINDS],
        "sparse": torch.eye(2).to_sparse(),
        "lazy": [torch.tensor([1j]), torch.tensor([1j]).conj(), *mirrored()],
    }


def mirrored() -> tuple[Tensor, Tensor]:
    """Two tensors of other numbers in the same storage."""
    one = torch.tensor([1j])
    return one.imag, one.conj().imag


KINDS = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.uint32),
]


def in_memory(packed: Packed) -> Any:
    return packed.unpack()


def from_file(packed: Packed, recent: Recent | None = None) -> Any:
    file, size, sha256 = _file.dump(packed)
    with file:
        file.seek(0)
        return _file.load(file, size=size, sha256=sha256, recent=recent or Recent(0))


def described(value: Any) -> Any:
    """All that can be compared with ``==``, with its types."""
    if isinstance(value, Tensor):
        return str(value.dtype), str(value.layout), value.shape, value.to_dense().tolist()
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.tolist()
    if isinstance(value, dict):
        inside = [(key, described(entry)) for key, entry in value.items()]
        return type(value), inside, [*getattr(value, "_metadata", {}).items()]
    if isinstance(value, list | tuple):
        return type(value), [described(entry) for entry in value]
    return type(value), value


@pytest.mark.parametrize("limit", [0, math.inf])  # tensors by themselves, or side by side
@pytest.mark.parametrize("back", [in_memory, from_file])
def test_what_comes_back_is_what_was_saved(
    back: Callable[[Packed], Any], limit: float, device: str
) -> None:
    saved = content(device)
    assert described(back(pack(saved, limit=limit))) == described(saved)


def test_it_comes_back_to_the_cpu(device: str) -> None:
    for limit in (0, math.inf):
        found = from_file(pack(content(device), limit=limit))
        assert {tensor.device.type for tensor in found["model"].values()} == {"cpu"}


@pytest.mark.parametrize("back", [in_memory, from_file])
def test_nobody_shares_what_is_kept(back: Callable[[Packed], Any]) -> None:
    saved = content()
    before = described(copy.deepcopy(saved))
    packed = pack(saved, limit=math.inf)
    for _ in range(3):
        spoil(saved)
        saved = back(packed)
        assert described(saved) == before


def spoil(content: dict[str, Any]) -> None:
    content["model"]["0.weight"].zero_()
    content["model"]._metadata.clear()
    content["nested"][0][1][0].zero_()
    content["array"][:] = 0
    content["counter"].clear()
    for tensor in content["kinds"]:
        tensor.copy_(torch.zeros(2).to(tensor.dtype))


def test_what_comes_back_holds_no_more_than_itself() -> None:
    for found in (back(pack(content(), limit=math.inf)) for back in (in_memory, from_file)):
        for tensor in (*found["model"].values(), *found["views"][:1]):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_equal_contents_have_equal_names() -> None:
    saved = content()
    one, same = (pack(copy.deepcopy(saved), limit=math.inf) for _ in range(2))
    assert one.sha256() == same.sha256()
    saved["model"]["0.weight"][0, 0] += 1
    assert one.sha256() != pack(saved, limit=math.inf).sha256()


def test_tied_weights_stay_one_tensor() -> None:
    weight = torch.ones(3)
    for limit in (0, math.inf):
        one, two = from_file(pack({"one": weight, "two": weight.detach()}, limit=limit)).values()
        assert one.data_ptr() == two.data_ptr()


def test_a_file_is_one_as_torch_writes_it() -> None:
    saved = content()
    stream, _, _ = _file.dump(pack(saved, limit=math.inf))
    with stream:
        stream.seek(0)
        found = torch.load(stream, weights_only=True)
    assert described(found["model"]) == described(pack(saved, limit=math.inf).unpack()["model"])
    np.testing.assert_array_equal(found["array"]["optuna_ext:array"], saved["array"])


def test_what_is_recent_is_not_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, recent = pack(content(), limit=math.inf), Recent(1 << 20)
    expected = described(from_file(packed))
    recent.put(_file.dump(packed)[2], packed)
    monkeypatch.setattr(_file, "_unpickled", None)
    assert described(from_file(packed, recent)) == expected


def test_the_oldest_give_way() -> None:
    recent = Recent(100)
    a, b, c, large = (pack({"x": torch.ones(n)}, limit=math.inf) for n in (10, 10, 10, 26))
    for name, kept in (("a", a), ("b", b), ("a", a), ("c", c), ("too large", large)):
        recent.put(name, kept)
    assert [recent.get(name) for name in ("a", "b", "c", "too large")] == [a, None, c, None]


def test_a_pickle_leaves_it_behind() -> None:
    recent = Recent(100)
    recent.put("a", pack({}, limit=0))
    assert pickle.loads(pickle.dumps(recent)).get("a") is None


@pytest.mark.parametrize("place", ["kept", ":memory:"])
def test_a_pickled_store_knows_what_was_kept(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    trial = FixedTrial({})
    store = CheckpointStore(place)
    store.resume(trial, model=model).save(1)
    pickle.loads(pickle.dumps(store)).resume(trial, model=other)
    assert torch.equal(model.weight, other.weight)
