from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from typing import Any
import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optuna_ext.fused._feed import rows_at_once
from optuna_ext.fused._member import Member
from optuna_ext.fused._population import Population
from optuna_ext.fused._problem import Fold
from optuna_ext.fused._signature import padded_template
from optuna_ext.fused._stack import members_at_once
from optuna_ext.fused._training import Training


_TRIALS = 8, 12  # members of the two trials: of fewer, the first check would count more
_CHEAP = 2**20  # parameters of all members of a trial


def memory_per_member(
    member: Member,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[..., Tensor],
    valid: tuple[Tensor, Tensor] | None = None,
    slots: int = 256,
    engine: str = "vmap",
    amp: bool = False,
) -> int:
    """Predict how much memory each slot of a population needs in training.

    Two smaller populations take two steps and evaluate as many rows as a large one does at once,
    and every tensor that torch makes is counted while it lives. From them on the memory grows by
    equal amounts per slot, so they tell that of any number. What torch's kernels use inside and
    what its allocator keeps unused comes on top.

    Args:
        member:
            A typical member; it is not changed.
        x:
            The training inputs, on the device.
        y:
            The training targets, on the device.
        loss:
            As for :class:`~optuna_ext.fused.Population`.
        valid:
            Inputs and targets to be evaluated on, on the device; ``None`` leaves that out.
        slots:
            How many there will be: they share what is there once, and the more they are, the
            fewer rows are evaluated at once.
        engine:
            The engine, not ``"auto"``, which also tries others at the first step.
        amp:
            As for :class:`~optuna_ext.fused.Population`.

    Returns:
        Bytes.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy
        >>> from optuna_ext.fused import Member, memory_per_member
        >>> model = torch.nn.Linear(100, 10, bias=False)
        >>> member = Member(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1))
        >>> x, y = torch.randn(8, 100), torch.randint(10, (8,))
        >>> memory_per_member(member, x, y, loss=cross_entropy) > 2 * 4 * 1000  # with gradients
        True
    """
    size = min(member.batch_size or len(x), len(x))
    train = _with_short_end(x, size), _with_short_end(y, size)
    valids: list[tuple[Tensor, Tensor]] = []
    if valid is not None:
        parts = [*zip(*(torch.split(rows, rows_at_once(slots)) for rows in valid), strict=True)]
        valids = [parts[0], parts[-1]]  # the last one may be shorter

    def peak(n: int) -> int:
        left_out = len(x) - len(train[0])
        return _peak(n, member, train, valids, left_out, loss=loss, engine=engine, amp=amp)

    few, more = _TRIALS
    if engine == "stack":
        few, more = _stacks_to_try(member, rows=size, slots=slots)
    if slots <= more:
        return round(peak(slots) / slots)
    first, second = peak(few), peak(more)
    return round((first + (second - first) * (slots - few) / (more - few)) / slots)


def _stacks_to_try(member: Member, *, rows: int, slots: int) -> tuple[int, int]:
    """Return how many members two trials of a stack have.

    Its activations grow only up to a number of members, which depends on that of the rows; if the
    networks are small, as many as there are slots are the simplest.
    """
    model, _ = padded_template(member)
    at_once = members_at_once(model, rows=rows, slots=slots)
    cheap = _CHEAP // sum(parameter.numel() for parameter in model.parameters())
    more = min(slots, max(2 * at_once, cheap))
    return more // 2, more


def _with_short_end(rows: Tensor, size: int) -> Tensor:
    """Take as many rows as make a whole batch and one like the last of an epoch."""
    return rows[: size + len(rows) % size]


def _peak(
    n: int,
    member: Member,
    train: tuple[Tensor, Tensor],
    valids: Sequence[tuple[Tensor, Tensor]],
    left_out: int,
    *,
    loss: Callable[..., Tensor],
    **options: Any,
) -> int:
    device = train[0].device
    live = _Live(device)
    with live:
        population = Population(member, slots=n, device=device, loss=loss, **options)
        for slot in range(n):
            population.admit(slot, copy.deepcopy(member))
        population.train_epoch(*train)
        live.peak += 4 * n * left_out  # the order of the rows that are not here
        for valid in valids:
            population.evaluate(*valid, {"any": lambda outputs, _: outputs.flatten(1).sum(1)})
    return live.peak


class Footprint:
    """Predicts the memory of a slot of the largest network that is trained.

    Args:
        folds: The rows.
        loss: As for :class:`~optuna_ext.fused.Population`.
        amp: As for :class:`~optuna_ext.fused.Population`.
    """

    def __init__(self, folds: Sequence[Fold], *, loss: Callable[..., Tensor], amp: bool) -> None:
        self._folds = folds
        self._loss = loss
        self._amp = amp
        self._largest: tuple[int, Callable[[], Sequence[Member]], str] | None = None

    def see(self, training: Training, engine: str) -> None:
        """Take note of a network in training."""
        if self._largest is None or training.n_parameters > self._largest[0]:
            self._largest = training.n_parameters, training.build, engine

    def predict(self, slots: int) -> int:
        """Return how many bytes each of so many slots takes; 0 if nothing was trained.

        All folds keep their weights, but one at a time its activations; for simplicity, and to be
        on the safe side, both count for each.
        """
        if self._largest is None:
            return 0
        _, build, engine = self._largest
        x, y = self._folds[0].train
        settings: dict[str, Any] = {"loss": self._loss, "engine": engine, "amp": self._amp}
        valid = self._folds[0].valid
        one = memory_per_member(build()[0], x, y, valid=valid, slots=slots, **settings)
        return len(self._folds) * one


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside on a device, as long as they live."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.peak = 0
        self._now = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, count=False)  # was there before
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._see(tensor, count=True)
        return result

    def _see(self, tensor: object, *, count: bool) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.device != self._device:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if count else 0

        def gone(_: object) -> None:
            self._now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)
