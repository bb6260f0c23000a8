"""Keep the progress of a loaded optimizer or scheduler, but this trial's own hyperparameters.

Loading an optimizer's state also loads the learning rate it was saved with, and so undoes the one
that this trial was given. But a learning rate is not only what the trial gave: a scheduler moves
it, and that movement must go on. So three states are compared, entry by entry: what the *former*
trial began with, what is *saved*, and what *this* trial begins with. An entry that never moved is
a hyperparameter, and this trial's counts; one that moved is progress, and the saved one counts. A
learning rate may be both: then this trial's is moved by the same factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import torch
from torch import Tensor


_MISSING = object()


def own_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of an optimizer's parameter groups."""
    return [
        {name: _number(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def merge_groups(
    former: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    mine: Sequence[Mapping[str, Any]],
    *,
    floors: tuple[float, float] = (0.0, 0.0),
) -> list[dict[str, Any]]:
    """Return the options with which an optimizer goes on.

    Args:
        former:
            Those the former trial began with.
        saved:
            Those in the checkpoint.
        mine:
            Those this trial begins with.
        floors:
            The learning rates toward which a scheduler moves, of the former trial and of this one.

    Returns:
        One mapping per parameter group.
    """
    merged = []
    for then, now, own in zip(former, saved, mine, strict=True):
        group = {**now, **{name: _pick(then, now, own, name) for name in own}}
        if "initial_lr" in now and "initial_lr" not in own:  # its scheduler is not here
            group["initial_lr"] = own.get("lr")
        if "lr" in own and "lr" in now and "lr" in then:
            group["lr"] = _moved(then, now, own, floors)
        merged.append(group)
    return merged


def merge_schedule(former: Any, saved: Any, mine: Any) -> Any:
    """Return the state with which a scheduler goes on; of its parts likewise."""
    states = (former, saved, mine)
    if all(type(state) is dict for state in states):
        return {
            name: merge_schedule(former.get(name, _MISSING), value, mine.get(name, _MISSING))
            for name, value in saved.items()
        }
    if all(type(state) is list for state in states) and len({*map(len, states)}) == 1:
        return [merge_schedule(*entries) for entries in zip(*states, strict=True)]
    return mine if mine is not _MISSING and _equal(former, saved) else saved


def without_functions(state: Any) -> Any:
    """Leave out of a scheduler's state what its constructor makes again."""
    if type(state) is dict:
        return {n: without_functions(value) for n, value in state.items() if not callable(value)}
    return [without_functions(entry) for entry in state] if type(state) is list else state


def _pick(
    then: Mapping[str, Any], now: Mapping[str, Any], own: Mapping[str, Any], name: str
) -> Any:
    former, saved, mine = (state.get(name, _MISSING) for state in (then, now, own))
    if saved is _MISSING or _equal(former, saved):
        return mine
    return saved if _equal(former, mine) else mine


def _moved(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    own: Mapping[str, Any],
    floors: tuple[float, float],
) -> Any:
    """The learning rate, moved from this trial's as the saved one was from the former's."""
    name = "initial_lr" if all("initial_lr" in state for state in (then, own)) else "lr"
    saved = _number(now["lr"])
    if _equal(then[name], own[name]) and floors[0] == floors[1]:
        return saved
    if _equal(_number(then["lr"]), saved):
        return own["lr"]
    span = then[name] - floors[0]
    factor = (saved - floors[0]) / span if span else math.nan
    moved = floors[1] + (own[name] - floors[1]) * factor
    return moved if math.isfinite(moved) else own["lr"]


def _number(value: Any) -> Any:
    """A tensor of one element as a number."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _equal(one: Any, other: Any) -> bool:
    one, other = _number(one), _number(other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)
