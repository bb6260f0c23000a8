from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch import Tensor

from optuna_ext.fused._randomness import is_counter


class Weights:
    """The parameters of all members as one matrix ``(slots, P)``, and their buffers.

    A member may be narrower than its slot: its tensors then lie in the first corner of theirs, and
    the rest is zero.

    Args:
        model:
            The architecture, as wide as the slots are to be.
        groups:
            The parameters to be trained; each group gets adjacent columns.
        slots:
            The number of rows.
        device:
            Where to keep them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: Sequence[Sequence[nn.Parameter]],
        slots: int,
        device: torch.device,
    ) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        trained = [[names.pop(id(parameter)) for parameter in group] for group in groups]
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._columns: dict[str, tuple[slice, torch.Size]] = {}
        self.groups: list[slice] = []
        end = 0
        for group in [*trained, [*names.values()]]:
            begin = end
            for name in group:
                self._columns[name] = (slice(end, end + shapes[name].numel()), shapes[name])
                end += shapes[name].numel()
            self.groups.append(slice(begin, end))
        self.frozen = self.groups.pop()  # the columns of what is not to be trained
        self.trained = [name for group in trained for name in group]
        dtype = next(model.parameters()).dtype
        self.flat = torch.zeros(slots, end, dtype=dtype, device=device)
        self.buffers = {
            name: buffer.new_zeros((slots, *buffer.shape), device=device)
            for name, buffer in model.named_buffers()
        }
        # The state dict of torch names a shared tensor several times.
        canonical = {id(tensor): name for name, tensor in _tensors(model)}
        self._keys = {
            key: canonical[id(tensor)] for key, tensor in model.state_dict(keep_vars=True).items()
        }
        self._learned = {*self._keys.values()} | {n for n in self.buffers if is_counter(n)}
        self._shapes: list[dict[str, torch.Size]] = [{} for _ in range(slots)]

    @property
    def columns(self) -> dict[str, slice]:
        """Where each parameter lies in ``flat``."""
        return {name: columns for name, (columns, _) in self._columns.items()}

    @property
    def has_frozen(self) -> bool:
        """Whether some parameters are not to be trained."""
        return bool(self.frozen.start < self.frozen.stop)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """See columns of a matrix like ``flat`` as the parameters of a population."""
        return {
            name: rows[:, columns].view(len(rows), *shape)
            for name, (columns, shape) in self._columns.items()
        }

    def member_views(self, row: Tensor, slot: int) -> dict[str, Tensor]:
        """See a row of a matrix like ``flat`` as the parameters of a member, in its own shapes."""
        return {
            name: _corner(row[columns].view(shape), self._shapes[slot].get(name, shape))
            for name, (columns, shape) in self._columns.items()
        }

    def tensors_of(self, slot: int) -> dict[str, Tensor]:
        """See a member's parameters and buffers."""
        buffers = {name: buffer[slot] for name, buffer in self.buffers.items()}
        return self.member_views(self.flat[slot], slot) | buffers

    @torch.no_grad()
    def write(self, slot: int, tensors: Mapping[str, Tensor], *, learned: bool = True) -> None:
        """Overwrite a member's parameters and buffers, or only what it has not learned."""
        if not learned:
            for name in self.buffers.keys() - self._learned:
                self.buffers[name][slot] = tensors[name]
            return
        self.flat[slot].zero_()
        self._shapes[slot] = {name: tensor.shape for name, tensor in tensors.items()}
        for name, tensor in self.tensors_of(slot).items():
            tensor.copy_(tensors[name])

    def state_of(self, slot: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copy a member's state dict and its buffers that are not part of it."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors_of(slot).items()}
        state = {key: tensors[name] for key, name in self._keys.items()}
        rest = {name: tensors[name] for name in tensors.keys() - self._keys.values()}
        return state, rest

    def load(self, slot: int, state: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state_of` gave."""
        self.write(slot, {name: state[key] for key, name in self._keys.items()} | dict(rest))

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Overwrite what members have learned by what others have, all at once.

        That is their state dicts and how far their random layers are; other buffers stay, such as
        dropout rates.
        """
        rows, onto = torch.tensor([sources, targets], device=self.flat.device)
        self.flat[onto] = self.flat[rows]
        for name in self.buffers.keys() & self._learned:
            self.buffers[name][onto] = self.buffers[name][rows]
        shapes = [self._shapes[source] for source in sources]
        for target, shape in zip(targets, shapes, strict=True):
            self._shapes[target] = shape

    def compact(self, keep: Sequence[int]) -> None:
        """Keep these rows only."""
        rows = torch.tensor(keep, device=self.flat.device)
        self.flat = self.flat[rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self._shapes = [self._shapes[slot] for slot in keep]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Give the parameters and buffers of a network, each once."""
    return dict(_tensors(model))


def _tensors(model: nn.Module) -> list[tuple[str, Any]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _corner(tensor: Tensor, shape: torch.Size) -> Tensor:
    for dim, size in enumerate(shape):
        if size != tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, size)
    return tensor
