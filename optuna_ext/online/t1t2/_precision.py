"""How what only tuning needs is computed."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from optuna_ext._logs import get_logger


_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_WORTH_IT = 2**18  # parameters; below, computing the training gradient twice costs more
T = TypeVar("T")

_logger = get_logger(__name__)


class Precision:
    """Either bfloat16, where torch holds that to be safe, or what the training computes in.

    Args:
        amp:
            Whether it is bfloat16; :obj:`None` decides by what is faster, as long as that works.
        params:
            The trainable parameters.

    Attributes:
        amp: Whether it is bfloat16.
    """

    def __init__(self, amp: bool | None, params: Sequence[Tensor]) -> None:
        self.amp = _is_faster(params) if amp is None else bool(amp)
        self._is_asked_for = amp is not None
        self._device = params[0].device.type

    def __call__(self) -> AbstractContextManager[object]:
        """Return the context to compute in."""
        return torch.autocast(self._device, torch.bfloat16) if self.amp else nullcontext()

    def attempt(self, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns, which computes in this context.

        If it fails in a bfloat16 that nobody has asked for, it is called once more without.
        """
        try:
            return compute()
        except Exception as error:
            if self._is_asked_for or not self.amp:
                raise
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        self.amp = False
        found = compute()  # a mistake that has nothing to do with bfloat16 raises once more
        _logger.warning("T1T2 goes on without bfloat16, in which the model fails: %s", reason)
        return found


def _is_faster(params: Sequence[Tensor]) -> bool:
    """Return whether it is a large model in float32 on a CPU that multiplies bfloat16."""
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in params):
        return False
    if sum(p.numel() for p in params) < _WORTH_IT or not hasattr(torch.cpu, "get_capabilities"):
        return False
    return any(torch.cpu.get_capabilities().get(name) for name in _INSTRUCTIONS)
