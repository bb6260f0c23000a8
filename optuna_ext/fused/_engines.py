"""Ways to take a step with all members of a population; all compute the same.

- ``stack``: products of all members' weights, for stacks of ``Linear``, ``ReLU`` and ``Tanh``.
- ``vmap``: one forward of the user's module for all members, by ``torch.func.vmap``, and ordinary
  autograd on the sum of their losses. Any architecture that vmap can batch.
- ``grad``: vmap of the gradient, for what has no batching rule under autograd: recurrent layers.
- ``loop``: one member after another, each by its own module. Everything that trains at all.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
import types
from typing import Any
from typing import ClassVar
import warnings

import torch
from torch import nn
from torch import Tensor
from torch.func import functional_call
from torch.func import grad_and_value
from torch.func import vmap

from optuna_ext.fused._feed import Batch
from optuna_ext.fused._graphs import RECORDERS
from optuna_ext.fused._graphs import Recordings
from optuna_ext.fused._losses import mean_loss
from optuna_ext.fused._optimizers import Optimizers
from optuna_ext.fused._rewritten import Rewritten
from optuna_ext.fused._weights import Weights


Tensors = dict[str, Tensor]


@dataclass
class Program:
    """What engines share: the population's tensors and what is done with them.

    Args:
        model:
            The architecture; its own weights are not used.
        weights:
            The weights of the members.
        optimizers:
            Their optimizers.
        loss:
            As for ``Population``.
        hyper:
            The arguments of the loss, ``(slots,)`` each.
        models:
            The members' own modules; ``None`` in free slots.
        seeds:
            The seeds of the members.
        steps:
            How many steps they have made ``(slots,)``, on the CPU.
        autocast:
            Makes the context of a forward.
        compile:
            Whether to compile.
        tolerance:
            How far results may differ, as a share of the largest number.
    """

    model: nn.Module
    weights: Weights
    optimizers: Optimizers
    loss: Callable[..., Tensor]
    hyper: Tensors
    models: list[nn.Module | None]
    seeds: list[int]
    steps: Tensor
    autocast: Callable[[], AbstractContextManager[Any]]
    compile: bool
    tolerance: float

    @property
    def taken(self) -> list[int]:
        """The slots that have a member."""
        return [slot for slot, model in enumerate(self.models) if model is not None]

    def matrices(self) -> list[Tensor]:
        """Everything that a step changes, a row per slot."""
        return [self.weights.flat, *self.weights.buffers.values(), *self.optimizers.matrices()]

    def tensors(self) -> list[Tensor]:
        """Everything that a step reads or changes, but for the rows."""
        return [*self.matrices(), *self.hyper.values(), *self.optimizers.coefficients()]

    def compact(self, keep: Sequence[int]) -> None:
        """Keep these slots only."""
        self.weights.compact(keep)
        self.optimizers.compact(keep)
        rows = torch.tensor(keep, device=self.weights.flat.device)
        self.hyper = {name: values[rows] for name, values in self.hyper.items()}
        self.models = [self.models[slot] for slot in keep]
        self.seeds = [self.seeds[slot] for slot in keep]
        self.steps = self.steps[[*keep]]


class Engine:
    """Takes steps with all members of a program."""

    name: ClassVar[str]

    def __init__(self, program: Program) -> None:
        self._program = program
        flat = program.weights.flat
        self._total = flat.new_zeros(len(flat))  # of the losses
        self._recordings: Recordings | None = None
        if flat.device.type in RECORDERS and not program.compile:
            self._recordings = Recordings(
                flat.device, model=program.model, loss=program.loss, tolerance=program.tolerance
            )

    @property
    def note(self) -> str:
        """A sentence on whether steps are recorded, or nothing."""
        return self._recordings.note if self._recordings else ""

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the losses ``(slots,)`` and the gradients ``(slots, P)`` of what is trained."""
        raise NotImplementedError

    def train(self, batches: Iterable[Batch]) -> Tensor:
        """Take a step per batch with every member that is not idle, and count it.

        Returns:
            The sums of the losses ``(slots,)``; anything in free slots.
        """
        p = self._program
        self._total.zero_()
        taken = self._mask(p.taken)
        state = [*p.matrices(), self._total]
        if self._recordings:
            self._recordings.begin([*p.tensors(), self._total])
        for batch in batches:
            if self._recordings:
                self._recordings.take(self._step, batch, state)
            else:
                self._step(batch)
            p.steps += taken & ~self._mask(batch.idle) if batch.idle else taken
        return self._total.clone()

    def _step(self, batch: Batch) -> None:
        """Take a step on the device, of which Python keeps no account."""
        p = self._program
        with self._kept(batch):
            losses, gradients = self.gradients(batch)
            p.optimizers.step(gradients)
        self._total += losses.masked_fill(batch.ended, 0) if batch.idle else losses

    @contextmanager
    def _kept(self, batch: Batch) -> Iterator[None]:
        """Put idle slots back in the end."""
        matrices = self._program.matrices() if batch.idle else []
        if self._recordings is None:
            idle = torch.tensor(batch.idle, device=self._total.device, dtype=torch.long)
            saved = [matrix[idle] for matrix in matrices]
            yield
            for matrix, rows in zip(matrices, saved, strict=True):
                matrix[idle] = rows
        else:  # is more to copy, but which slots they are need not be known
            saved = [matrix.clone() for matrix in matrices]
            yield
            for matrix, rows in zip(matrices, saved, strict=True):
                ended = batch.ended.view(-1, *[1] * (matrix.dim() - 1))
                matrix.copy_(torch.where(ended, rows, matrix))

    def _mask(self, slots: Sequence[int]) -> Tensor:
        mask = torch.zeros(len(self._program.models), dtype=torch.bool)
        mask[[*slots]] = True
        return mask

    def outputs(self, x: Tensor) -> Tensor:
        """Compute ``(slots, rows, ...)`` in evaluation mode; anything in free slots."""
        raise NotImplementedError

    def forget(self, slot: int) -> None:
        """Drop what is known of a member that has changed."""

    def close(self) -> None:
        """Let go of the members' own modules, and of recordings."""
        if self._recordings:
            self._recordings.clear()


class VmapEngine(Engine):
    """One forward for all members, one backward through the sum of their losses."""

    name = "vmap"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._compiled: Callable[..., tuple[Tensor, Tensors]] | None = None
        if program.compile:
            # What the compiler knows hangs on the code object, of which it allows few versions.
            own = types.FunctionType(VmapEngine._eager.__code__.replace(), globals())
            self._compiled = torch.compile(types.MethodType(own, self), dynamic=False)

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        p.model.train()
        views = {name: view.detach() for name, view in p.weights.views(p.weights.flat).items()}
        leaves = [views[name].requires_grad_() for name in p.weights.trained]
        with _quiet(), p.autocast():
            losses, buffers = (self._compiled or self._eager)(views, batch)
            total = losses.sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        _put_back(p.weights, buffers)
        return losses.detach(), _joined(gradients, p.weights)

    def _rewritten(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._program.compile else Rewritten()

    def _eager(self, views: Tensors, batch: Batch) -> tuple[Tensor, Tensors]:
        p = self._program
        row = None if batch.shared else 0
        dims = (0, 0, row, row, None if batch.live is None else 0, 0)
        losses: tuple[Tensor, Tensors] = vmap(self._member, in_dims=dims)(
            views, p.weights.buffers, batch.x, batch.y, batch.live, p.hyper
        )
        return losses

    def _member(
        self, views: Tensors, buffers: Tensors, x: Tensor, y: Tensor, live: Any, hyper: Tensors
    ) -> tuple[Tensor, Tensors]:
        given = views | buffers  # where functional_call leaves what a module puts in their place
        with self._rewritten():
            outputs = functional_call(self._program.model, given, (x,))
            loss = mean_loss(self._program.loss, outputs, y, live, hyper)
        return loss, {name: given[name] for name in buffers if given[name] is not buffers[name]}

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        p = self._program
        p.model.eval()
        tensors = p.weights.views(p.weights.flat) | p.weights.buffers
        with _quiet(), p.autocast(), self._rewritten():
            outputs: Tensor = vmap(lambda own: functional_call(p.model, own, (x,)), in_dims=(0,))(
                tensors
            )
        return outputs


class GradEngine(VmapEngine):
    """Forward and backward of a member, for all of them."""

    name = "grad"

    def _rewritten(self) -> AbstractContextManager[Any]:
        return nullcontext()  # what is rewritten has its gradient by autograd

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        p.model.train()
        views = {name: view.detach() for name, view in p.weights.views(p.weights.flat).items()}
        trained = {name: views.pop(name) for name in p.weights.trained}
        row = None if batch.shared else 0
        dims = (0, 0, 0, row, row, None if batch.live is None else 0, 0)

        def member(trained: Tensors, fixed: Tensors, *rest: Any) -> tuple[Tensor, Tensors]:
            return self._member(trained | fixed, *rest)

        with _quiet(), p.autocast():
            gradients, (losses, buffers) = vmap(
                grad_and_value(member, has_aux=True), in_dims=dims
            )(trained, views, p.weights.buffers, batch.x, batch.y, batch.live, p.hyper)
        _put_back(p.weights, buffers)
        return losses, _joined([gradients[name] for name in trained], p.weights)

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        # What has no batching rule gets one from its gradient, and here is none.
        p = self._program
        p.model.eval()
        tensors = p.weights.views(p.weights.flat) | p.weights.buffers
        with p.autocast():
            found = [
                functional_call(
                    p.model, {name: rows[slot] for name, rows in tensors.items()}, (x,)
                )
                for slot in range(len(p.models))
            ]
        return torch.stack(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let vmap fall back to a loop inside of an operation: the choice of the engine times it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _put_back(weights: Weights, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        weights.buffers[name].copy_(buffer.detach())


def _joined(gradients: Sequence[Tensor | None], weights: Weights) -> Tensor:
    for name, gradient in zip(weights.trained, gradients, strict=True):
        if gradient is None:  # torch's optimizers skip it, even its weight decay
            raise RuntimeError(f"the parameter {name!r} takes no part in the loss")
    return torch.cat([g.reshape(len(g), -1) for g in gradients if g is not None], 1)
