"""Two CUDA devices that are made of the CPU, for machines that have none.

A :class:`FakeTensor` says that it is on ``cuda:0`` and keeps its numbers in a tensor of the CPU.
Each operation refuses what CUDA would refuse, tensors and generators of several devices, and those
that make the program wait for the device are noted. Nothing is said about what only a kernel can
show: rounding, streams, memory, autocast.

torch's own ``FakeTensorMode`` has no numbers, so no training gets past the first loss that it
reads, and where torch is built without CUDA the process aborts at the first gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
import hashlib
from pathlib import Path
import traceback
from typing import Any

import pytest
import torch
from torch import nn
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils._pytree import tree_map


_CPU, _FIRST = torch.device("cpu"), torch.device("cuda:0")
_DEVICES = 2
_OURS = ("optuna_ext", "objectives", "studies")

_aten = torch.ops.aten
_MIXED = {_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
_READ = {
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
}


class FakeTensor(Tensor):
    """A tensor on a device that is not there."""

    numbers: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, numbers: Tensor, place: torch.device) -> FakeTensor:
        # To C++ it is on the device "meta", which needs no driver, with the autograd of CUDA.
        like = torch.empty_strided(
            numbers.size(), numbers.stride(), dtype=numbers.dtype, device="meta"
        )
        made: FakeTensor = Tensor._make_subclass(cls, like, False, device_for_backend_keys=_FIRST)
        made.numbers, made.place = numbers, place
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: self.place)
    is_cpu = property(lambda self: False)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self.numbers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = nn.Parameter(made) if isinstance(self, nn.Parameter) else made
        copied: Tensor = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
        return rebuild, (self.numbers.detach(), self.dtype, str(self.place), False)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class FakeGenerator(torch.Generator):
    """A generator of any device; on CUDA its state has 16 bytes, not the 5,056 of the CPU."""

    _states: dict[bytes, Tensor] = {}

    def __new__(cls, device: Any = "cpu") -> FakeGenerator:
        made = super().__new__(cls)
        made.place = _numbered(device)  # type: ignore[attr-defined]
        return made

    def __init__(self, device: Any = "cpu") -> None:
        del device

    device = property(lambda self: self.place)

    def manual_seed(self, seed: int) -> FakeGenerator:
        # A seed does not mean the same numbers on all devices.
        super().manual_seed(seed if self.device == _CPU else seed ^ 0x5EED)
        return self

    def get_state(self) -> Tensor:
        state = super().get_state()
        if self.device == _CPU:
            return state
        key = hashlib.blake2b(state.numpy().tobytes(), digest_size=16).digest()
        self._states[key] = state
        return torch.tensor([*key], dtype=torch.uint8)

    def set_state(self, state: Tensor) -> FakeGenerator:
        if isinstance(state, FakeTensor):
            raise TypeError("RNG state must be a torch.ByteTensor")
        if self.device != _CPU:
            if state.numel() != 16:
                raise RuntimeError("RNG state is wrong size")
            state = self._states[state.numpy().tobytes()]
        super().set_state(state)
        return self


def _numbered(device: Any) -> torch.device:
    device = torch.device(device)
    return _FIRST if device == torch.device("cuda") else device


_waits: list[str] = []
_in_use = [_FIRST]  # the device of the tensors that torch was last called with


def _run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Do on the CPU what torch is about to do."""
    leaves = tree_leaves((args, kwargs))
    fakes = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
    place = fakes[0].device if fakes else _CPU
    target = kwargs.get("device")
    if target is not None:  # "meta" is what C++ takes from a tensor of ours
        place = _in_use[0] if target.type == "meta" else _numbered(target)
    elif fakes and func not in _MIXED:
        _check_devices(func, args, leaves)
    if _waits_for_device(func, args, fakes, place):
        _waits.append(f"{func} in {_caller()}")
    known = {id(fake.numbers): fake for fake in fakes}
    own = {id(leaf) for leaf in leaves if type(leaf) is not FakeTensor}

    def given(x: Any) -> Any:
        return x.numbers if isinstance(x, FakeTensor) else x

    def made(x: Any) -> Any:
        if isinstance(x, Tensor) and id(x) in known:
            return known[id(x)]
        if not isinstance(x, Tensor) or place == _CPU or (target is None and id(x) in own):
            return x
        return FakeTensor(x.clone() if id(x) in own else x, place)

    with _disable_current_modes():
        on_cpu = {} if target is None else {"device": _CPU, "pin_memory": False}
        on_cpu = {name: value for name, value in on_cpu.items() if name in kwargs}
        args, kwargs = tree_map(given, (args, dict(kwargs) | on_cpu))
        return tree_map(made, func(*args, **kwargs))


def _check_devices(func: Any, args: Any, leaves: list[Any]) -> None:
    if func in _INDEXED:  # by the CPU or the same device
        leaves = [args[0], *tree_leaves(args[2:])]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    found = {t.device for t in tensors if t.dim() or t.device != _CPU}
    if func in _INDEXED and args[0].device == _CPU or len(found) > 1:
        devices = sorted({str(t.device) for t in tensors})
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}, {devices}")


def _waits_for_device(func: Any, args: Any, fakes: list[FakeTensor], place: torch.device) -> bool:
    if func in _INDEXED:
        parts = [part for part in args[1] if part is not None]
        return any(part.device == _CPU or part.dtype == torch.bool for part in parts) and bool(
            fakes
        )
    if func is _aten._to_copy.default:
        return bool(fakes) != (place != _CPU)
    if func is _aten.copy_.default:
        return len(fakes) == 1
    return func in _READ and bool(fakes)


def _caller() -> str:
    """Which of our functions is at work."""
    frames = traceback.extract_stack()
    ours = [f for f in frames if not {*_OURS}.isdisjoint(Path(f.filename).parts)]
    return f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "a test"


class _Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Prepared(TorchFunctionMode):
    """Does otherwise what would look for a driver, and what C++ would do with the wrong device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, FakeTensor):
                _in_use[0] = leaf.device
        if func == Tensor.data.__set__ and any(isinstance(x, FakeTensor) for x in args):  # type: ignore[attr-defined]
            return _set_data(*args)
        if name == "cuda" and isinstance(args[0], Tensor):
            return args[0].to(_FIRST)
        if name == "pin_memory":
            return args[0]
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], FakeTensor):
            args = args[0], _as_tensors(args[1], args[0].device), *args[2:]
        if name == "to":
            args = tuple(_numbered(x) if isinstance(x, str | torch.device) else x for x in args)
        if kwargs.get("device") is not None:
            kwargs["device"] = _numbered(kwargs["device"])
        _check_generator(args, kwargs)
        if name in ("tensor", "as_tensor", "new_tensor"):
            return _tensor(func, name, args, kwargs)
        return func(*args, **kwargs)


def _tensor(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
    if name == "new_tensor":
        kwargs = {"device": args[0].device, "dtype": args[0].dtype} | kwargs
        func, args = torch.tensor, args[1:]
    place, needs = kwargs.pop("device", None), kwargs.pop("requires_grad", False)
    made: Tensor = func(*args, **kwargs)
    made = made if place in (None, made.device) else made.to(place)
    return made.requires_grad_() if needs else made


def _as_tensors(index: Any, place: torch.device) -> Any:
    if isinstance(index, tuple):
        return tuple(_as_tensors(part, place) for part in index)
    if isinstance(index, list):
        return torch.tensor(index, dtype=None if index else torch.int64).to(place)
    return index


def _check_generator(args: Any, kwargs: Mapping[str, Any]) -> None:
    generator = kwargs.get("generator")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    place = kwargs.get("device") or (tensors[0].device if tensors else _CPU)
    if isinstance(generator, torch.Generator) and generator.device != place:
        raise RuntimeError(f"Expected a {place} generator but found one of {generator.device}")


def _set_data(tensor: Tensor, value: Tensor) -> None:
    if isinstance(tensor, FakeTensor) and isinstance(value, FakeTensor):
        tensor.numbers, tensor.place = value.numbers, value.place
        with torch._C.DisableTorchFunction():
            Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
        return
    made = value.detach().requires_grad_(tensor.requires_grad)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, tensor.requires_grad)
    # As torch.utils.swap_tensors, which refuses the weights of recurrent layers.
    tensor.__class__, made.__class__ = made.__class__, tensor.__class__
    tensor.__dict__, made.__dict__ = made.__dict__, tensor.__dict__
    torch._C._swap_tensor_impl(tensor, made)


@contextmanager
def pretended(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Pretend that there are two; give the operations that the program waits for, as they come."""
    generators = [FakeGenerator(f"cuda:{i}").manual_seed(0) for i in range(_DEVICES)]

    current = [0]

    @contextmanager
    def device(wanted: Any) -> Iterator[None]:
        before, current[0] = current[0], _numbered(wanted).index
        yield
        current[0] = before

    def generator(device: Any) -> FakeGenerator:
        made: Any = generators[device if isinstance(device, int) else _numbered(device).index]
        return made  # type: ignore[no-any-return]

    def manual_seed(seed: int) -> torch.Generator:
        for one in generators:
            one.manual_seed(seed)
        return torch.default_generator.manual_seed(seed)

    fakes: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "current_device": lambda: current[0],
        "device": device,
        "device_count": lambda: _DEVICES,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device="cuda": generator(device).get_state(),
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "manual_seed": lambda seed: generators[current[0]].manual_seed(seed),
        "set_rng_state": lambda state, device="cuda": generator(device).set_state(state),
        "synchronize": lambda device=None: None,
    }
    for name, fake in fakes.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr(torch, "Generator", FakeGenerator)
    patch.setattr(torch, "load", _loaded)
    patch.setattr(torch, "manual_seed", manual_seed)
    patch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
    patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    patch.setattr(optimizer, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor])
    # Module.to must keep its parameters the same objects, as it does on real devices.
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _waits.clear()
    try:
        with _Prepared(), _Dispatched():  # type: ignore[no-untyped-call]
            yield _waits
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


_load = torch.load


def _loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
    found = _load(file, map_location, **kwargs)
    return found if map_location is None else _moved(found, map_location)


def _moved(value: Any, place: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(place)
    if isinstance(value, dict):  # keeps what else it has, as the state dict of a module does
        for key, entry in value.items():
            value[key] = _moved(entry, place)
    elif type(value) in (list, tuple):
        return type(value)(_moved(entry, place) for entry in value)
    return value
