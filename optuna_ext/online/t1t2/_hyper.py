from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import copy
import math
from typing import Any

import torch
from torch import nn
from torch import Tensor

from optuna_ext.online.t1t2._hyperparameters import Hyperparameter
from optuna_ext.online.t1t2._step import Scaling


_REACH = 2.0  # how many times a steady hypergradient crosses the range in a training
_LONGEST = 0.05  # step, as a share of the range
_CLIP = 3.0  # times the root mean square of the hypergradients so far


class HyperOptimizer:
    """Adam on the raw numbers of hyperparameters, within their bounds.

    Args:
        hyperparameters:
            Whose numbers they are.
        model:
            Tells how many numbers there are.
        like:
            A parameter: the raw numbers are on its device, and in float32 at least.
        n_updates:
            How many steps will come; with the width of the ranges it gives the step size.
    """

    def __init__(
        self,
        hyperparameters: Sequence[Hyperparameter],
        model: nn.Module,
        *,
        like: Tensor,
        n_updates: int,
    ) -> None:
        self._owners: dict[str, Hyperparameter] = {}
        self.raws: dict[str, Tensor] = {}
        groups: list[dict[str, Any]] = []
        for hyperparameter in hyperparameters:
            for name in hyperparameter.names(model):
                if name in self._owners:
                    raise ValueError(f"`hyperparameters` has two of the name {name!r}.")
                raw = torch.tensor(
                    hyperparameter.to_raw(hyperparameter.init),
                    dtype=torch.promote_types(like.dtype, torch.float32),
                    device=like.device,
                    requires_grad=True,
                )
                self._owners[name] = hyperparameter
                self.raws[name] = raw
                low, high = hyperparameter.bounds
                lr = (high - low) * min(_REACH / n_updates, _LONGEST)
                groups.append({"params": [raw], "lr": lr})
        if not groups:
            raise ValueError("`hyperparameters` must not be empty.")
        self._adam = torch.optim.Adam(groups)
        self.n_skipped = 0

    def values(self) -> dict[str, Tensor]:
        """Return the values, which depend on the raw numbers."""
        return {name: self._owners[name].to_value(raw) for name, raw in self.raws.items()}

    @torch.no_grad()
    def set(self, values: Mapping[str, float]) -> None:
        """Give values to those that are named.

        Raises:
            ValueError: If there is no such name.
        """
        for name, value in values.items():
            if name not in self.raws:
                raise ValueError(f"{name!r} must be one of {list(self.raws)}.")
            self.raws[name].fill_(self._owners[name].to_raw(value))

    def derivatives(
        self, pairs: Sequence[tuple[Tensor, Tensor]], *, scaling: Scaling
    ) -> dict[str, Tensor]:
        """Return those of the validation loss by the raw numbers that it depends on.

        Args:
            pairs: As :class:`LastStep` returns them.
            scaling: Of the second tensors on their way back.
        """
        pairs = [(output, weight) for output, weight in pairs if output.requires_grad]
        found = torch.autograd.grad(
            [output for output, _ in pairs],
            list(self.raws.values()),
            [scaling.times(weight.to(output.dtype)) for output, weight in pairs],
            allow_unused=True,
        )
        used = {name: g for name, g in zip(self.raws, found, strict=True) if g is not None}
        return scaling.without(used)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Move the raw numbers; those without a finite gradient stay, and are counted.

        Args:
            gradients: Those that are missing are 0: a batch may pass a layer by.

        Returns:
            The gradients as numbers.
        """
        gradients = {n: torch.zeros_like(raw) for n, raw in self.raws.items()} | dict(gradients)
        numbers = torch.stack([gradients[name] for name in self.raws]).tolist()
        for (name, raw), number in zip(self.raws.items(), numbers, strict=True):
            raw.grad = self._clip(raw, gradients[name]) if math.isfinite(number) else None
            self.n_skipped += raw.grad is None
        self._adam.step()
        for name, raw in self.raws.items():
            raw.clamp_(*self._owners[name].bounds)
        return dict(zip(self.raws, numbers, strict=True))

    def skip(self) -> None:
        """Count all of a step that cannot be made."""
        self.n_skipped += len(self.raws)

    def _clip(self, raw: Tensor, gradient: Tensor) -> Tensor:
        """Cut off what is far beyond the usual size, which alone says what is far."""
        state = self._adam.state.get(raw)
        if not state:
            return gradient.clone()
        correction = 1 - self._adam.defaults["betas"][1] ** state["step"].item()  # on the CPU
        most = _CLIP * (state["exp_avg_sq"] / correction).sqrt()
        return torch.where(most > 0, gradient.clamp(-most, most), gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return what a later process needs to go on."""
        raws = {name: raw.detach().clone() for name, raw in self.raws.items()}
        adam = copy.deepcopy(self._adam.state_dict())
        return {"raws": raws, "adam": adam, "n_skipped": self.n_skipped}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one was."""
        for name, raw in self.raws.items():
            raw.copy_(state["raws"][name])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self.n_skipped = state["n_skipped"]
