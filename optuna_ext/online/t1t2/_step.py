"""What there is to know of a training step once it is over."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.online.t1t2._hyperparameters import Batch


Group = Mapping[str, Any]
K = TypeVar("K")


class StepWatch:
    """Sees the optimizer's steps: whether one was made, and with which options.

    A scheduler may change the options as soon as the step is made, and a gradient scaler leaves
    steps out.

    Args:
        optimizer: The optimizer.
        before: Called right before a step that is waited for.
    """

    def __init__(self, optimizer: Optimizer, before: Callable[[], None]) -> None:
        self._optimizer = optimizer
        self._before = before
        self._made: dict[Tensor, Group] | None = None
        self.is_waiting = False
        optimizer.register_step_pre_hook(self._pre_hook)
        optimizer.register_step_post_hook(self._post_hook)

    def wait(self) -> None:
        """Take the next step for the one to see."""
        self._made = None
        self.is_waiting = True

    def take(self) -> dict[Tensor, Group] | None:
        """Return the group of each parameter as it was in the step; None without a step."""
        self.is_waiting = False
        made, self._made = self._made, None
        return made

    def _pre_hook(self, *_: object) -> None:
        if self._is_seen():
            self._before()

    def _post_hook(self, *_: object) -> None:
        if self._is_seen():
            self._made = {}
            for group in self._optimizer.param_groups:
                options = {name: value for name, value in group.items() if name != "params"}
                self._made |= dict.fromkeys(group["params"], options)

    def _is_seen(self) -> bool:
        if not self.is_waiting or self._made is not None:
            return False
        # A fused optimizer is called by the scaler in any case, and leaves the step out itself.
        found_inf: Tensor | None = getattr(self._optimizer, "found_inf", None)
        return found_inf is None or not found_inf.item()


class Scaling:
    """A gradient scaler, or none of it.

    Args:
        scaler: The scaler.
        device: Of the losses.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None, *, device: torch.device) -> None:
        self._scaler = scaler
        self._device = device
        self.leaves_steps_out = scaler is not None

    def times(self, x: Tensor) -> Tensor:
        """Return ``x`` multiplied by the factor of gradients on their way back."""
        return x if self._scaler is None else self._scaler.scale(x)

    def without(self, gradients: Mapping[K, Tensor]) -> dict[K, Tensor]:
        """Return gradients that were multiplied by the factor, without it."""
        factor = self._factor
        return {key: g if factor is None else g / factor for key, g in gradients.items()}

    def unscale(self, optimizer: Optimizer) -> None:
        """Take the factor off the gradients of an optimizer."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make an optimizer's step, or leave it out."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    @property
    def _factor(self) -> Tensor | None:
        return None if self._scaler is None else self.times(torch.ones((), device=self._device))


@dataclass(frozen=True)
class Moment:
    """What a training loss was computed from, beside parameters and values.

    Args:
        batch: A copy of the batch, where it is made of tensors, lists, tuples and dicts.
        randomness: The states of the generators before.
    """

    batch: Batch
    randomness: list[Tensor]


class Randomness:
    """All that a training loss draws random numbers from.

    Args:
        generator: The tuner's own; the rest are torch's of the CPU and of this one's device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._cuda = [generator.device] if generator.device.type == "cuda" else []

    def state(self) -> list[Tensor]:
        """Return where the generators stand."""
        states = [self.generator.get_state(), torch.get_rng_state()]
        return states + [torch.cuda.get_rng_state(device) for device in self._cuda]

    @contextmanager
    def back_at(self, states: list[Tensor]) -> Iterator[None]:
        """Let the generators stand where they did, and then where they do now."""
        now = self.state()
        self._set(states)
        try:
            yield
        finally:
            self._set(now)

    def load(self, state: Tensor) -> None:
        """Let the tuner's own generator go on, unless the state is of another kind of device."""
        if state.shape == self.generator.get_state().shape:
            self.generator.set_state(state.cpu())

    def _set(self, states: list[Tensor]) -> None:
        own, cpu, *cuda = (state.cpu() for state in states)
        self.load(own)
        torch.set_rng_state(cpu)
        # A state that was saved elsewhere may have none, or one more.
        for device, state in zip(self._cuda, cuda, strict=False):
            torch.cuda.set_rng_state(state, device)


def copied(batch: Batch, *, device: torch.device | None = None) -> Batch:
    """Return a batch that does not change with the one given, on its device or another."""
    if isinstance(batch, Tensor):
        return batch.detach().to(device or batch.device, copy=True)
    if isinstance(batch, Mapping):
        return {key: copied(value, device=device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(copied(value, device=device) for value in batch)
    return batch
