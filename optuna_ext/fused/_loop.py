"""The engine that trains one member after another."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import nullcontext
import hashlib

import torch
from torch import nn
from torch import Tensor

from optuna_ext.fused._engines import Engine
from optuna_ext.fused._engines import Program
from optuna_ext.fused._engines import Tensors
from optuna_ext.fused._feed import Batch
from optuna_ext.fused._losses import mean_loss
from optuna_ext.fused._weights import tensors


class LoopEngine(Engine):
    """One member after another, by its own module and torch's fused optimizers."""

    name = "loop"

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._bound: dict[int, _Bound] = {}
        self._draws: bool | None = None  # from the generator of the process
        self.unused: set[str] = set()
        """Trained parameters that took no part in the loss of some member, as far as is known."""

    def train(self, batches: Iterable[Batch]) -> Tensor:
        p = self._program
        listed = [*batches]
        total = p.weights.flat.new_zeros(len(p.models))
        for slot in p.taken:  # all its steps at once, as its weights are in the cache then
            for batch in listed:
                if slot not in batch.idle:
                    loss, gradients = self._gradients(slot, *batch.of(slot))
                    self._bound_of(slot).update(gradients)
                    p.steps[slot] += 1
                    total[slot] += loss
        return total

    def gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        p = self._program
        losses = p.weights.flat.new_full((len(p.models),), torch.nan)
        rows = torch.zeros_like(p.weights.flat)
        for slot in p.taken:
            if slot not in batch.idle:
                losses[slot], gradients = self._gradients(slot, *batch.of(slot))
                views = p.weights.member_views(rows[slot], slot)
                for name, gradient in zip(p.weights.trained, gradients, strict=True):
                    if gradient is not None:
                        views[name].copy_(gradient)
                    else:
                        self.unused.add(name)
        return losses, rows[:, : p.weights.frozen.start]

    def _gradients(
        self, slot: int, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        p = self._program
        bound = self._bound_of(slot).train()
        hyper = {name: values[slot] for name, values in p.hyper.items()}
        if self._draws is None:
            self._draws = _draws(bound.model, x)
            bound.attach()
        with _seeded(p, slot, x.device) if self._draws else nullcontext(), p.autocast():
            loss = mean_loss(p.loss, bound.model(x), y, None, hyper)
        gradients = torch.autograd.grad(loss, bound.trained, allow_unused=True)
        bound.keep_buffers()
        return loss.detach(), gradients

    @torch.no_grad()
    def outputs(self, x: Tensor) -> Tensor:
        p = self._program
        found: dict[int, Tensor] = {}
        for slot in p.taken:
            with p.autocast():
                found[slot] = self._bound_of(slot).eval().model(x)
        free = torch.full_like(next(iter(found.values())), torch.nan)
        return torch.stack([found.get(slot, free) for slot in range(len(p.models))])

    def forget(self, slot: int) -> None:
        if slot in self._bound:
            self._bound.pop(slot).detach()

    def close(self) -> None:
        super().close()
        for slot in [*self._bound]:
            self.forget(slot)

    def _bound_of(self, slot: int) -> _Bound:
        if slot not in self._bound:
            self._bound[slot] = _Bound(self._program, slot)
        return self._bound[slot]


class _Bound:
    """A member's own module on the rows of a population."""

    def __init__(self, program: Program, slot: int) -> None:
        model = program.models[slot]
        if model is None:
            raise ValueError(f"slot must be taken, but {slot} is free.")
        self.model = model
        self._own = {name: tensor.detach() for name, tensor in tensors(model).items()}
        self._tensors = program.weights.tensors_of(slot)
        self._buffers = [name for name, _ in model.named_buffers()]
        self.attach()
        parameters = dict(model.named_parameters())
        self.trained = [parameters[name] for name in program.weights.trained]
        self.update = program.optimizers.updater(slot)

    def attach(self) -> None:
        """Put the rows in the place of the module's parameters and buffers."""
        self._put(self._tensors)

    def detach(self) -> None:
        """Give the module its own tensors back, so that it does not keep the rows in memory."""
        self._put(self._own)

    def _put(self, given: Tensors) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data = given[name]
        for name in self._buffers:
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, given[name])

    def keep_buffers(self) -> None:
        """Copy the buffers that the module has replaced instead of changing them."""
        for name in self._buffers:
            buffer = self.model.get_buffer(name)
            if buffer is not self._tensors[name]:
                self._tensors[name].copy_(buffer.detach())

    def train(self) -> _Bound:
        if not self.model.training:
            self.model.train()
        return self

    def eval(self) -> _Bound:
        if self.model.training:
            self.model.eval()
        return self


@torch.no_grad()
def _draws(model: nn.Module, x: Tensor) -> bool:
    """Whether a network draws from the generator of the process; leaves both as they were."""
    saved = [buffer.clone() for buffer in model.buffers()]
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        before = torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)
        model(x)
        after = torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)
    for buffer, value in zip(model.buffers(), saved, strict=True):
        buffer.copy_(value)
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@contextmanager
def _seeded(program: Program, slot: int, device: torch.device) -> Iterator[None]:
    """Make what a step draws from the generator of the process depend on its member alone."""
    text = f"{program.seeds[slot]},{int(program.steps[slot])}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big", signed=True)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which seeds the other GPUs, too, where others may be training.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
