"""The state of everything a training consists of: taken, and given back."""

from __future__ import annotations

from collections.abc import Mapping
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from optuna_ext.checkpoints._errors import CheckpointError
from optuna_ext.checkpoints._hyperparameters import merge_groups
from optuna_ext.checkpoints._hyperparameters import merge_schedule
from optuna_ext.checkpoints._hyperparameters import own_groups
from optuna_ext.checkpoints._hyperparameters import without_functions


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Things:
    """What a training consists of, by name.

    Args:
        things:
            Modules, optimizers, schedulers, generators, and whatever has ``state_dict`` and
            ``load_state_dict``, as this trial has built them.

    Raises:
        TypeError: If one of them is something else.
    """

    def __init__(self, things: Mapping[str, Any]) -> None:
        self._things = {name: _inner(name, thing) for name, thing in things.items()}
        self.own = self._hyperparameters()

    def _hyperparameters(self) -> dict[str, Any]:
        """What this trial begins with: only what :meth:`restore` has to compare."""
        own: dict[str, Any] = {}
        for name, thing in self._things.items():
            if _is_optimizer(thing):
                own[name] = own_groups(thing)
            elif isinstance(thing, LRScheduler):
                own[name] = without_functions(thing.state_dict())
        return own

    def states(self) -> dict[str, Any]:
        """Return the state of everything."""
        return {name: _state(thing) for name, thing in self._things.items()}

    def restore(self, states: Mapping[str, Any], former: Mapping[str, Any] | None) -> None:
        """Give the states back.

        Args:
            states:
                From :meth:`states`, of the same names or more.
            former:
                What the trial that wrote them began with, to keep this trial's hyperparameters;
                ``None`` to take the saved ones.

        Raises:
            CheckpointError: If a name is missing, or a state does not fit.
        """
        missing = [name for name in self._things if name not in states]
        if missing:
            raise CheckpointError(f"holds {sorted(states)}, but no {missing[0]!r}.")
        # A scheduler tells its optimizer's learning rates, so it comes after it.
        for name, thing in sorted(self._things.items(), key=lambda item: _order(item[1])):
            state = states[name]
            try:
                if former is not None and name in self.own and name in former:
                    state = self._merged(name, former[name], state, former)
                _set_state(thing, state)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                reason = str(error).partition("\n")[0]
                raise CheckpointError(f"does not fit `{name}`: {reason}") from error

    def _merged(self, name: str, former: Any, saved: Any, all_former: Mapping[str, Any]) -> Any:
        """A state with this trial's hyperparameters and the saved progress."""
        thing, own = self._things[name], self.own[name]
        if isinstance(thing, LRScheduler):
            rates = [group["lr"] for group in thing.optimizer.param_groups]
            return _with_rates(merge_schedule(former, saved, own), rates)
        if len(saved["param_groups"]) != len(own):
            return saved  # which the optimizer will refuse
        groups = merge_groups(
            former, saved["param_groups"], own, floors=self._floors(thing, all_former)
        )
        for group, built in zip(groups, thing.param_groups, strict=True):
            for option, value in group.items():
                if isinstance(built.get(option), Tensor) and not isinstance(value, Tensor):
                    group[option] = torch.full_like(built[option], value)
        return {**saved, "param_groups": groups}

    def _floors(self, optimizer: Any, former: Mapping[str, Any]) -> tuple[float, float]:
        """Toward which learning rate a cosine goes, for the former trial and for this one."""
        for name, thing in self._things.items():
            if isinstance(thing, LRScheduler) and thing.optimizer is optimizer:
                own = getattr(thing, "eta_min", 0.0)
                return former.get(name, {}).get("eta_min", own), own
        return 0.0, 0.0

    def devices(self) -> list[torch.device]:
        """Return the accelerators in use, in order."""
        found = {
            tensor.device
            for thing in self._things.values()
            if isinstance(thing, nn.Module)
            for tensor in (*thing.parameters(), *thing.buffers())
            if tensor.device.type in ("cuda", "mps")
        }
        found |= {
            thing.device
            for thing in self._things.values()
            if isinstance(thing, torch.Generator) and thing.device.type in ("cuda", "mps")
        }
        return sorted(found, key=str)


def random_state(devices: list[torch.device]) -> dict[str, Any]:
    """Return the states of the random numbers of Python, NumPy and torch."""
    return {
        "python": _packed(random.getstate()),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - the user's code may use it
        "torch": torch.get_rng_state(),
        "devices": [_device_random(device).get_rng_state(*_index(device)) for device in devices],
    }


def set_random_state(state: Mapping[str, Any], devices: list[torch.device]) -> None:
    """Let random numbers go on from :func:`random_state`; another machine may lack devices."""
    random.setstate(_unpacked(state["python"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, saved in zip(devices, state["devices"], strict=False):
        if saved.shape == (empty := _device_random(device).get_rng_state(*_index(device))).shape:
            _device_random(device).set_rng_state(saved.to(empty.device), *_index(device))


def _packed(state: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep the 625 numbers of Python's generator as an array, which is pickled at once."""
    version, numbers, gauss = state
    return version, np.array(numbers, dtype=np.uint32), gauss


def _unpacked(state: tuple[Any, ...]) -> tuple[Any, ...]:
    version, numbers, gauss = state
    return version, tuple(numbers.tolist()), gauss


def _device_random(device: torch.device) -> Any:
    return torch.cuda if device.type == "cuda" else torch.mps


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return (device,) if device.type == "cuda" else ()


def _inner(name: str, thing: Any) -> Any:
    """Unwrap what only passes calls on, and refuse what has no state."""
    while isinstance(thing, _WRAPPERS):
        thing = thing.module
    if isinstance(inner := getattr(thing, "scheduler", None), LRScheduler):  # of Accelerate
        thing = inner
    elif _is_optimizer(thing) and _is_optimizer(inner := getattr(thing, "optimizer", None)):
        thing = inner  # likewise
    if isinstance(thing, torch.Generator | np.random.Generator | random.Random):
        return thing
    if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
        raise TypeError(
            f"`{name}` must have state_dict and load_state_dict, or be a generator of random "
            f"numbers, but is of type {type(thing).__name__}."
        )
    return thing


def _is_optimizer(thing: Any) -> bool:
    return hasattr(thing, "param_groups")


def _order(thing: Any) -> int:
    return 1 if isinstance(thing, LRScheduler) else 0


def _state(thing: Any) -> Any:
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if isinstance(thing, random.Random):
        return _packed(thing.getstate())
    state = thing.state_dict()
    if isinstance(thing, nn.Module):
        return _renamed(state, _usual_names(thing))
    return without_functions(state) if isinstance(thing, LRScheduler) else state


def _set_state(thing: Any, state: Any) -> None:
    if isinstance(thing, torch.Generator):
        if state.shape == thing.get_state().shape:  # of the same kind of device
            thing.set_state(state)
    elif isinstance(thing, np.random.Generator):
        thing.bit_generator.state = state
    elif isinstance(thing, random.Random):
        thing.setstate(_unpacked(state))
    elif isinstance(thing, nn.Module):
        back = {usual: actual for actual, usual in _usual_names(thing).items()}
        thing.load_state_dict(_renamed(state, back))
    else:
        thing.load_state_dict(state)


def _usual_names(module: nn.Module) -> dict[str, str]:
    """Map the names of a module's entries to those without compilation and parallelism.

    ``torch.compile`` puts ``_orig_mod`` into the names, data parallelism ``module``; a checkpoint
    of a compiled network must fit one that is not.
    """
    passed: list[
        tuple[str, str]
    ] = []  # prefixes that only name a wrapper's content, the inner ones first
    for path, part in module.named_modules():
        inner = "_orig_mod" if "_orig_mod" in dict(part.named_children()) else "module"
        if inner == "_orig_mod" or isinstance(part, _WRAPPERS):
            passed.insert(0, (f"{path}." if path else "", f"{inner}."))
    if not passed:
        return {}
    state = module.state_dict()
    paths = [path for path, _ in module.named_modules() if path]
    usual = {name: name for name in (*state, *paths)}
    for prefix, inner in passed:
        for name, shorter in usual.items():
            if f"{shorter}.".startswith(prefix + inner):
                usual[name] = f"{prefix}{shorter[len(prefix + inner) :]}".rstrip(".")
    return usual


def _renamed(state: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed = type(state)((names.get(name, name), value) for name, value in state.items())
    if hasattr(state, "_metadata"):
        renamed._metadata = {  # type: ignore[attr-defined]
            names.get(path, path): value for path, value in state._metadata.items()
        }
    return renamed


def _with_rates(state: Any, rates: list[Any]) -> Any:
    """Let a scheduler tell the learning rates that its optimizer has."""
    if isinstance(state, dict):
        return {
            name: list(rates) if name == "_last_lr" else _with_rates(value, rates)
            for name, value in state.items()
        }
    return [_with_rates(entry, rates) for entry in state] if type(state) is list else state
