"""The optimizers of a population: torch's rules on matrices, with coefficients per member.

``1 - beta2`` in float32 is wrong by 1e-5 for 0.999, so coefficients are computed in float64 and
only then cast.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from dataclasses import dataclass
import itertools
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim import AdamW
from torch.optim import Optimizer
from torch.optim import SGD
from torch.optim.sgd import sgd

from optuna_ext.fused._weights import Weights


_ROW_BY_ROW = 4096  # columns from which on Adam's one pass beats the seven of matrices, on a CPU
_REFUSED = ("amsgrad", "maximize", "differentiable")

Groups = list[dict[str, Any]]
"""The parameter groups of an optimizer's state dict."""


@dataclass(frozen=True)
class Rule:
    """What members of one program must have in common in their optimizers."""

    kind: type[Optimizer]
    sizes: tuple[int, ...]  # parameters per group
    nesterov: tuple[bool, ...] = ()
    decoupled: bool = False

    @property
    def state_names(self) -> tuple[str, ...]:
        """The tensors that the optimizer keeps per parameter."""
        return ("momentum_buffer",) if self.kind is SGD else ("exp_avg", "exp_avg_sq")


def rule_of(optimizer: Optimizer) -> Rule:
    """Read the rule of an optimizer.

    Raises:
        ValueError: If it is none that populations know.
    """
    kind = type(optimizer)
    if kind not in (SGD, Adam, AdamW):
        raise ValueError(f"optimizer must be SGD, Adam or AdamW, but it is {kind.__name__}.")
    for name in _REFUSED:
        if any(group.get(name) for group in optimizer.param_groups):
            raise ValueError(f"{name} of the optimizer must be False, but it is True.")
    groups = optimizer.param_groups
    return Rule(
        kind=SGD if kind is SGD else Adam,
        sizes=tuple(len(group["params"]) for group in groups),
        nesterov=tuple(bool(group["nesterov"]) for group in groups) if kind is SGD else (),
        decoupled=kind is AdamW or bool(groups[0].get("decoupled_weight_decay")),
    )


class Optimizers:
    """The optimizers of all members of a population.

    Args:
        rule:
            What they have in common.
        weights:
            What they train.
    """

    def __init__(self, rule: Rule, weights: Weights) -> None:
        self.rule = rule
        self._weights = weights
        slots = len(weights.flat)
        self._groups: list[Groups | None] = [None] * slots
        self._factors = [1.0] * slots
        self._steps = torch.zeros(slots, len(rule.sizes), device=weights.flat.device)
        self.state: dict[str, Tensor] = {}
        self._coefficients: list[dict[str, Tensor]] = []
        self._is_stale = True  # what they are

    def admit(self, slot: int, optimizer: Optimizer, *, learned: bool = True) -> None:
        """Take over the parameter groups of an optimizer, and start it, or go on."""
        self._groups[slot] = groups = copy.deepcopy(optimizer.state_dict()["param_groups"])
        self._is_stale = True
        if self.rule.kind is not SGD or any(group["momentum"] for group in groups):
            self._allocate()
        if learned:
            for matrix in self.matrices():
                matrix[slot] = 0

    def _allocate(self) -> None:
        if not self.state:
            flat = self._weights.flat
            self.state = {name: torch.zeros_like(flat) for name in self.rule.state_names}

    def release(self, slot: int) -> None:
        """Forget an optimizer."""
        self._groups[slot] = None
        self._is_stale = True

    def set_factors(self, factors: Sequence[float]) -> None:
        """Multiply the learning rates of the members, until the next call."""
        if self._factors != list(factors):
            self._factors = list(factors)
            self._is_stale = True

    def set_hyperparameters(self, slot: int, values: Mapping[str, float]) -> None:
        """Change coefficients of a member, in all its parameter groups.

        Raises:
            ValueError: If its optimizer has no such coefficient.
        """
        groups = self._groups[slot] or []
        for name, value in values.items():
            for group in groups:
                if name in ("beta1", "beta2") and "betas" in group:
                    betas = (value, group["betas"][1]), (group["betas"][0], value)
                    group["betas"] = betas[name == "beta2"]
                elif name in group and name in _NAMES[self.rule.kind]:
                    group[name] = value
                else:
                    raise ValueError(
                        f"hyperparameters must be of {_NAMES[self.rule.kind]}, "
                        f"but one is {name!r}."
                    )
            if name == "momentum" and value:
                self._allocate()
        self._is_stale = True

    @torch.no_grad()
    def step(self, gradients: Tensor) -> None:
        """Update the members; overwrites the gradients."""
        flat = self._weights.flat
        wide = flat.shape[1] >= _ROW_BY_ROW
        if self.rule.kind is not SGD and wide and flat.is_cpu:
            self._steps += 1
            self._step_rows(range(len(flat)), flat, gradients, *self.state.values())
            return
        update = self._sgd if self.rule.kind is SGD else self._adam
        for index, columns in enumerate(self._weights.groups):
            update(index, columns, gradients[:, columns])

    def _step_rows(self, slots: Iterable[int], *matrices: Tensor) -> None:
        """Update members by torch's kernels; the matrices have a row for each of the slots."""
        for index, columns in enumerate(self._weights.groups):
            steps = self._steps[:, index].unbind()
            rows = zip(*(matrix[:, columns].unbind() for matrix in matrices), strict=True)
            for slot, tensors in zip(slots, rows, strict=True):
                if self._groups[slot]:
                    self._call(slot, index, steps[slot], *([tensor] for tensor in tensors))

    def updater(self, slot: int) -> Callable[[Sequence[Tensor | None]], None]:
        """Give a function that updates one member by the gradients of its trained tensors.

        It is good until the member is replaced or the matrices are made anew.
        """
        weights, names = self._weights, self._weights.trained
        matrices = (weights.flat, *self.state.values())
        views = [weights.member_views(matrix[slot], slot) for matrix in matrices]
        lists = [[view[name] for name in names] for view in views]
        ends = [*itertools.accumulate(self.rule.sizes, initial=0)]
        steps = self._steps[slot]

        @torch.no_grad()
        def update(gradients: Sequence[Tensor | None]) -> None:
            steps.add_(1)
            for index, (begin, end) in enumerate(itertools.pairwise(ends)):
                # torch's optimizers skip a parameter without a gradient.
                used = [i for i in range(begin, end) if gradients[i] is not None]
                params, *state = ([tensors[i] for i in used] for tensors in lists)
                own = [g for g in gradients[begin:end] if g is not None]
                self._call(slot, index, steps[index], params, own, *state)

        @torch.no_grad()
        def update_padded(gradients: Sequence[Tensor | None]) -> None:
            steps.add_(1)
            params, *state = (matrix[slot : slot + 1] for matrix in matrices)
            row = torch.zeros_like(params)
            views = weights.member_views(row[0], slot)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    views[name].copy_(gradient)
            self._step_rows([slot], params, row, *state)

        # torch's kernels expect tensors without gaps.
        return update if all(t.is_contiguous() for t in lists[0]) else update_padded

    def _call(
        self,
        slot: int,
        index: int,
        step: Tensor,
        params: list[Tensor],
        gradients: list[Any],
        *state: list[Tensor],
    ) -> None:
        """Let torch's own fused kernels update tensors of a member, in its ``step``-th step."""
        group = (self._groups[slot] or [])[index]
        lr = float(group["lr"]) * self._factors[slot]
        if self.rule.kind is SGD:
            dampening = float(group["dampening"])
            if dampening and step <= 1:  # to look at the step, the program waits for the device
                dampening = 0.0
            sgd(
                params,
                gradients,
                list[Tensor | None](state[0]) if state else [None] * len(params),
                fused=True,
                weight_decay=float(group["weight_decay"]),
                momentum=float(group["momentum"]),
                lr=lr,
                dampening=dampening,
                nesterov=group["nesterov"],
                maximize=False,
            )
            return
        beta1, beta2 = group["betas"]
        mean, square = state
        # What torch.optim.adam.adam comes down to, which takes longer than a small member does.
        adam = torch._fused_adamw_ if self.rule.decoupled else torch._fused_adam_
        adam(
            params,
            gradients,
            mean,
            square,
            [],
            [step] * len(params),
            lr=lr,
            beta1=float(beta1),
            beta2=float(beta2),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            amsgrad=False,
            maximize=False,
        )

    def _sgd(self, index: int, columns: slice, gradient: Tensor) -> None:
        c = self._of_all()[index]
        parameters = self._weights.flat[:, columns]
        if "weight_decay" in c:
            gradient.addcmul_(parameters, c["weight_decay"])
        if self.state:
            # A member's first step has no momentum yet and is not dampened.
            steps = self._steps[:, index : index + 1]
            undamped = torch.where(steps == 0, 1.0, c["undamped"])
            buffer = self.state["momentum_buffer"][:, columns]
            buffer.mul_(c["momentum"]).addcmul_(gradient, undamped)
            steps += 1
            if self.rule.nesterov[index]:
                gradient.addcmul_(buffer, c["momentum"])
            else:
                gradient = buffer
        parameters.addcmul_(gradient, c["minus_lr"])

    def _adam(self, index: int, columns: slice, gradient: Tensor) -> None:
        c = self._of_all()[index]
        dtype = gradient.dtype
        parameters = self._weights.flat[:, columns]
        mean, square = (matrix[:, columns] for matrix in self.state.values())
        steps = self._steps[:, index : index + 1]
        steps += 1
        correction1 = 1 - c["beta1"] ** steps
        correction2 = (1 - c["beta2"] ** steps).sqrt()
        if "weight_decay" in c and self.rule.decoupled:
            parameters.mul_((1 + c["minus_lr"] * c["weight_decay"]).to(dtype))
        elif "weight_decay" in c:
            gradient.addcmul_(parameters, c["weight_decay"].to(dtype))
        mean.lerp_(gradient, (1 - c["beta1"]).to(dtype))
        square.lerp_(gradient.mul_(gradient), (1 - c["beta2"]).to(dtype))
        # mean / (sqrt(square) / correction2 + eps), multiplied by correction2 above and below
        denominator = torch.sqrt(square, out=gradient).add_((c["eps"] * correction2).to(dtype))
        torch.div(mean, denominator, out=gradient)
        rate = c["minus_lr"] * correction2 / correction1
        parameters.addcmul_(gradient, rate.to(dtype))

    def coefficients(self) -> list[Tensor]:
        """All of them, which stay where they are for as long as they are of the same kinds."""
        return [column for columns in self._of_all() for column in columns.values()]

    def _of_all(self) -> list[dict[str, Tensor]]:
        """The coefficients of each group as columns ``(slots, 1)``."""
        if self._is_stale:
            before = self._coefficients
            self._coefficients = [self._columns(index) for index in range(len(self.rule.sizes))]
            if [*map(list, before)] == [*map(list, self._coefficients)]:
                for columns, now in zip(before, self._coefficients, strict=True):
                    for name, column in columns.items():
                        column.copy_(now[name])
                self._coefficients = before
            self._is_stale = False
        return self._coefficients

    def _columns(self, index: int) -> dict[str, Tensor]:
        taken = {
            slot: _numbers(groups[index]) for slot, groups in enumerate(self._groups) if groups
        }
        free = dict.fromkeys(next(iter(taken.values())), 0.0)
        rows = [taken.get(slot, free) for slot in range(len(self._groups))]
        values = {name: [row[name] for row in rows] for name in free}
        rates = zip(values.pop("lr"), self._factors, strict=True)
        columns = {"minus_lr": [-lr * factor for lr, factor in rates]}
        if not any(values["weight_decay"]):
            del values["weight_decay"]
        columns |= values
        flat = self._weights.flat
        # SGD uses its coefficients as they are, Adam computes with them first.
        wide = torch.float32 if flat.device.type == "mps" else torch.float64
        dtype = flat.dtype if self.rule.kind is SGD else wide
        return {
            name: torch.tensor(column, dtype=torch.float64).to(flat.device, dtype)[:, None]
            for name, column in columns.items()
        }

    def state_of(self, slot: int) -> dict[str, Any]:
        """Give a member's optimizer as a state dict of torch."""
        state: dict[int, dict[str, Tensor]] = {}
        started = self._steps[slot].tolist()
        views = {
            name: self._weights.member_views(matrix[slot], slot)
            for name, matrix in self.state.items()
        }
        groups = self._groups[slot] or []
        for index, group in enumerate(groups):
            if not started[index] or (self.rule.kind is SGD and not group["momentum"]):
                continue
            for number in group["params"]:
                name = self._weights.trained[number]
                state[number] = {key: view[name].clone() for key, view in views.items()}
                if self.rule.kind is not SGD:
                    state[number]["step"] = self._steps[slot, index].to("cpu", copy=True)
        return {"state": state, "param_groups": copy.deepcopy(groups)}

    def load(self, slot: int, state: Mapping[str, Any]) -> None:
        """Put back the tensors of a state dict; the coefficients stay as they are."""
        self._steps[slot] = 0
        for name, matrix in self.state.items():
            matrix[slot] = 0
            views = self._weights.member_views(matrix[slot], slot)
            for index, group in enumerate(self._groups[slot] or []):
                for number in group["params"]:
                    saved = state["state"].get(number, {})
                    if saved.get(name) is not None:
                        views[self._weights.trained[number]].copy_(saved[name])
                        self._steps[slot, index] = float(saved.get("step", 1))

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Overwrite states of members by others', all at once; the coefficients stay."""
        rows, onto = torch.tensor([sources, targets], device=self._steps.device)
        for matrix in self.matrices():
            matrix[onto] = matrix[rows]
        if self.rule.kind is SGD:  # torch's keeps no buffer where there is no momentum
            for source, target in zip(sources, targets, strict=True):
                for index, group in enumerate(self._groups[source] or []):
                    if not group["momentum"]:
                        self._steps[target, index] = 0

    def matrices(self) -> list[Tensor]:
        """Everything that a step changes, a row per slot."""
        return [self._steps, *self.state.values()]

    def compact(self, keep: Sequence[int]) -> None:
        """Keep these rows only."""
        rows = torch.tensor(keep, device=self._steps.device)
        self._steps = self._steps[rows]
        self.state = {name: matrix[rows] for name, matrix in self.state.items()}
        self._groups = [self._groups[slot] for slot in keep]
        self._factors = [self._factors[slot] for slot in keep]
        self._coefficients, self._is_stale = [], True


_NAMES: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("lr", "momentum", "dampening", "weight_decay"),
    Adam: ("lr", "beta1", "beta2", "eps", "weight_decay"),
}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """The coefficients of a group by their names."""
    numbers = {"lr": float(group["lr"]), "weight_decay": float(group["weight_decay"])}
    if "betas" in group:
        beta1, beta2 = group["betas"]
        return numbers | {"beta1": float(beta1), "beta2": float(beta2), "eps": float(group["eps"])}
    undamped = 1 - float(group["dampening"]) if group["momentum"] else 1.0
    return numbers | {"momentum": float(group["momentum"]), "undamped": undamped}
