"""Steps of a population, recorded once as CUDA graphs and then replayed.

On a GPU, a step of small networks is some 50 kernels of a few microseconds each: most of its time
goes to Python and to launching them. A graph launches all of them at once.

A recording is a list of kernels with the addresses and numbers that they were given. So it holds
only as long as the tensors that a step uses stay where they are; what changes from step to step
has to change in their place; and Python is not asked again. Before a step is recorded it is
therefore looked through for what no graph can hold, and its first replay is compared with the
ordinary step from the same state. Whatever is wrong, the ordinary step is taken, and ``note`` says
why.

The rules are those of torch's notes on CUDA semantics, "CUDA Graphs". Results are left in tensors
of the population only, never in the memory of a recording, so that all of a population share one
pool in any order. None was measured on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch import Tensor

from optuna_ext.fused._feed import Batch
from optuna_ext.fused._recordable import generators
from optuna_ext.fused._recordable import Guard
from optuna_ext.fused._recordable import numbers_of


_SHAPES = 8  # of batches, from which on all are recorded anew, so that memory stays bounded

Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what functions do on a device."""

    def aside(self) -> AbstractContextManager[None]:
        """Make a context for what must run before it is recorded."""

    def record(self, step: Callable[[], None]) -> Replay:
        """Record a step, which may or may not be taken by that; return what takes it again."""


class CudaGraphs:
    """Records CUDA graphs that share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Use another stream than the current one, which goes on afterwards."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Replay:
        """Record a step without taking it."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph does not return to the stream before if a recording breaks off.
        with (
            self.aside(),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            step()
        return graph.replay


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}
"""What records, by the type of the device."""


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """A step that can be replayed.

    Args:
        batch: The tensors that it reads.
        replay: Takes it.
    """

    batch: Batch
    replay: Replay

    def take(self, batch: Batch) -> None:
        """Take it with other rows."""
        for own, given in ((self.batch.rows, batch.rows), (self.batch.live, batch.live)):
            if own is not None and given is not None:
                own.copy_(given)
        self.replay()


class Recordings:
    """The recorded steps of an engine, one for each shape of its batches.

    Args:
        device: Where the steps are taken; its type is one of ``RECORDERS``.
        model: The network, whose plain attributes a recording keeps as they were.
        loss: The loss; likewise, the numbers that it reads.
        tolerance: How far a replay may be from the step itself, as a share of the largest change.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        model: nn.Module,
        loss: Callable[..., Tensor],
        tolerance: float,
    ) -> None:
        self._device = device
        self._numbers = partial(numbers_of, model, loss)
        self._tolerance = tolerance
        self._recorder: Recorder | None = None
        self._recorded: dict[Hashable, _Recorded] = {}
        self._used: Hashable = None
        self._data: tuple[Tensor, Tensor] | None = None
        self._problem = ""

    @property
    def note(self) -> str:
        """A sentence on whether steps are replayed."""
        if self._problem:
            return f"Not recorded as a CUDA graph: {self._problem}."
        return "Its steps are replayed as CUDA graphs." if self._recorded else ""

    def clear(self) -> None:
        """Forget all recordings and give their memory back."""
        self._recorded.clear()
        self._recorder = self._data = None

    def begin(self, used: Iterable[Tensor]) -> None:
        """Forget all if what steps use lies elsewhere by now, or Python would do something else.

        Args:
            used: All tensors of the population that a step reads or writes.
        """
        now = tuple(map(_place, used)), self._numbers()
        if now != self._used:
            self.clear()
            self._used = now

    def take(self, step: Callable[[Batch], None], batch: Batch, state: Sequence[Tensor]) -> None:
        """Take a step, by a recording if there can be one.

        Args:
            step: Takes it.
            batch: The rows.
            state: All tensors that it changes, a row per slot.
        """
        if self._problem:
            step(batch)
            return
        # Engines keep what they make of the inputs as long as these are the same object.
        if self._data is None or any(
            a is not b for a, b in zip(self._data, (batch.inputs, batch.targets), strict=True)
        ):
            self.clear()
        shape = *map(_shape, (batch.rows, batch.live)), bool(batch.idle)
        if shape not in self._recorded:
            if len(self._recorded) == _SHAPES:
                self.clear()
            self._data = batch.inputs, batch.targets
            try:
                self._recorded[shape] = self._record(step, batch, state)
            except RuntimeError as error:
                self.clear()
                # What broke a recording off comes before what its end says about it.
                self._problem = str(error.__context__ or error).strip().partition("\n")[0]
                self._problem = self._problem.rstrip(".")
                step(batch)
                return
        self._recorded[shape].take(batch)

    def _record(
        self, step: Callable[[Batch], None], batch: Batch, state: Sequence[Tensor]
    ) -> _Recorded:
        """Record a step and compare it, without taking it."""
        if self._recorder is None:
            self._recorder = RECORDERS[self._device.type](self._device)
        rows, live = (None if t is None else t.clone() for t in (batch.rows, batch.live))
        own = replace(batch, rows=rows, live=live)
        run = partial(step, own)
        before = [tensor.clone() for tensor in state]
        python = self._numbers(), generators()
        try:
            with self._recorder.aside():
                with Guard(self._device):
                    run()
                _restore(state, before)
                run()
                expected = [tensor.clone() for tensor in state]
                _restore(state, before)
            if python != (self._numbers(), generators()):
                raise RuntimeError("the network or the loss changes Python values at each step")
            replay = self._recorder.record(run)
            _restore(state, before)
            replay()
            if not all(map(partial(_same, self._tolerance), state, expected, before)):
                raise RuntimeError("a replayed step is not the same as the step itself")
        finally:
            _restore(state, before)
        return _Recorded(batch=own, replay=replay)


def _place(tensor: Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _shape(tensor: Tensor | None) -> Hashable:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _restore(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _same(tolerance: float, found: Tensor, expected: Tensor, before: Tensor) -> bool:
    """Whether each row has changed by the same, up to a share of its largest change."""
    if torch.equal(found, expected) or not expected.is_floating_point():
        return torch.equal(found, expected)
    found, expected, before = (t.reshape(len(t), -1) for t in (found, expected, before))
    rounding = 4 * torch.finfo(expected.dtype).eps * expected.abs().nan_to_num(0, 0, 0)
    change = (expected - before).abs().nan_to_num(0, 0, 0)
    allowed = tolerance * change.amax(1, keepdim=True) + rounding.amax(1, keepdim=True)
    equal = (found == expected) | (found.isnan() & expected.isnan())
    return bool((equal | ((found - expected).abs() <= allowed)).all())
