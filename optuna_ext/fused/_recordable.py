"""What a step must not do, and not depend on, if it is to be recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
import inspect
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that no CUDA graph can hold.

    They would also break a recording off; but after that, the allocator of some versions of torch
    goes on as if there still was one, and fails later.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if self._waits(func, given):
            raise RuntimeError(f"{func} makes the CPU wait for the device")
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if func is torch.ops.aten.lift_fresh.default and made[0].device == self._device:
            raise RuntimeError("torch.tensor makes a tensor of the device out of Python numbers")
        devices = {t.device for t in (*given, *made) if t.dim() or "copy" in str(func)}
        if len(devices) > 1:
            raise RuntimeError(f"{func} copies from one device to another")
        return result

    def _waits(self, func: Any, given: Sequence[Tensor]) -> bool:
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            return any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
        return bool(
            {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags}
        )


def numbers_of(model: nn.Module, loss: Callable[..., Tensor]) -> Hashable:
    """The plain Python values that a network and a loss read, and where their own tensors lie."""
    while isinstance(loss, partial):
        loss = loss.func
    # A method reads what its object has.
    owner = getattr(loss, "__self__", loss)
    owners = [*model.modules(), *(owner.modules() if isinstance(owner, nn.Module) else [owner])]
    read = [dict(getattr(owner, "__dict__", {})) for owner in owners]
    if inspect.isfunction(loss) or inspect.ismethod(loss):
        found = inspect.getclosurevars(loss)
        read += [dict(found.globals), dict(found.nonlocals)]
    return tuple(
        (name, value.data_ptr() if isinstance(value, Tensor) else repr(value))  # of NaN, too
        for values in read
        for name, value in values.items()
        if isinstance(value, bool | int | float | str | Tensor) and name != "training"
    )


def generators() -> Hashable:
    """The states of the generators of the process that Python draws from."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 (networks may draw from it)
    return random.getstate(), repr(legacy), torch.get_rng_state().numpy().tobytes()
