from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Mapping
import copy
import dataclasses
import functools
import sys
import types
from typing import Any
import weakref

import torch
from torch import nn
from torch import Tensor
from torch.optim import Optimizer

from optuna_ext.fused._member import Member
from optuna_ext.fused._optimizers import rule_of
from optuna_ext.fused._randomness import own_randomness
from optuna_ext.fused._randomness import RandomLayer
from optuna_ext.fused._weights import tensors


# Rows of a batch do not meet in these, so batches of different sizes can be padded.
_ROW_BY_ROW = (
    nn.Sequential,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Conv1d,
    nn.Conv2d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_PADDED = 7, 256  # units of the layers that are padded
_DEPTH = 12  # of containers in containers
_OWN_STATE = {
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "training",
    "_is_full_backward_hook",
}


def signature(member: Member, *, rowwise: bool = True) -> Hashable:
    """Say which members one program can train: those of equal signatures.

    Equal are the types of the modules, their code and plain Python attributes, the shapes and
    types of parameters and buffers (plain stacks of ``Linear`` with ``ReLU`` or ``Tanh``: hidden
    widths from 7 to 256 only up to the next power of two), the kind of the optimizer with its
    parameter groups, and the names of the hyperparameters. Where rows of a batch may meet, as in
    batch normalization, so are the batch sizes; elsewhere only up to the next power of two.

    The dropout layers of ``member.model`` are replaced by those of a population.

    Args:
        member:
            The member.
        rowwise:
            Whether the loss gives one number per row; if not, batch sizes must be equal.

    Returns:
        Something to group members by.

    Raises:
        ValueError: If its optimizer is none that populations know.
    """
    model = own_randomness(member.model, member.seed)
    rule = rule_of(member.optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = {id(tensor): name for name, tensor in tensors(model).items()}
    own |= {id(module): name for name, module in model.named_modules()}
    groups = member.optimizer.param_groups
    size = member.batch_size
    if size is not None and rowwise and meets_no_row(model):
        size = _next_power(size)
    padded = padded_widths(member)
    return (
        tuple(
            (name, _code(module, own, padded=padded is not None))
            for name, module in model.named_modules()
        ),
        tuple(
            (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if padded is None
        ),
        tuple(tensor.dtype for tensor in model.parameters()),
        padded,
        # Tied tensors have several names.
        tuple(names[id(p)] for _, p in model.named_parameters(remove_duplicate=False)),
        (rule, tuple(names[id(p)] for group in groups for p in group["params"])),
        size,
        tuple(sorted(member.hyper)),
    )


def meets_no_row(model: nn.Module) -> bool:
    """Whether the rows of a batch have surely nothing to do with each other."""
    return all(
        type(module) in _ROW_BY_ROW
        or (isinstance(module, RandomLayer) and type(module).__module__ == RandomLayer.__module__)
        for module in model.modules()
    )


def stack_of(model: nn.Module) -> list[nn.Module] | None:
    """Give the layers of a plain stack of ``Linear`` with ``ReLU`` or ``Tanh``; else ``None``."""
    if type(model) is not nn.Sequential:
        return None
    layers = [layer for layer in model if type(layer) is not nn.Identity]
    dense = layers[::2]
    if (
        len(layers) % 2
        and all(type(layer) is nn.Linear for layer in dense)
        and all(type(layer) in (nn.ReLU, nn.Tanh) for layer in layers[1::2])
        and len({id(p) for layer in dense for p in layer.parameters()})
        == sum(len([*layer.parameters()]) for layer in dense)
        and not any(_has_hooks(layer) for layer in (model, *layers))
    ):
        return layers
    return None


def padded_widths(member: Member) -> tuple[int, ...] | None:
    """Give the widths of a slot for a stack: inputs, hidden units padded, outputs; else ``None``.

    A unit without incoming and outgoing weights gives ``relu(0) = tanh(0) = 0`` and has no
    gradient, so it stays as it is; only Adam without ``eps`` would divide zero by zero.
    """
    layers = stack_of(member.model)
    if layers is None or any(group.get("eps") == 0 for group in member.optimizer.param_groups):
        return None
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    hidden = (_width(layer.out_features) for layer in dense[:-1])
    return (dense[0].in_features, *hidden, dense[-1].out_features)


def padded_template(member: Member) -> tuple[nn.Module, Optimizer]:
    """Give a network and an optimizer for it that are as wide as a slot for the member."""
    widths = padded_widths(member)
    if widths is None:
        return member.model, member.optimizer
    model = copy.deepcopy(member.model)
    dense = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer, inputs, outputs in zip(dense, widths[:-1], widths[1:], strict=True):
        layer.in_features, layer.out_features = inputs, outputs
        layer.weight = nn.Parameter(layer.weight.new_zeros(outputs, inputs))
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.new_zeros(outputs))
    pairs = zip(member.model.parameters(), model.parameters(), strict=True)
    twins = {id(old): new.requires_grad_(old.requires_grad) for old, new in pairs}
    groups = [
        group | {"params": [twins[id(parameter)] for parameter in group["params"]]}
        for group in member.optimizer.param_groups
    ]
    return model, type(member.optimizer)(groups)  # type: ignore[call-arg]


def _width(n: int) -> int:
    # Padding a layer of 5 units to 8 would double the work of a network that is small anyway, and
    # of a wide one the work is all there is, which company does not make less.
    return _next_power(n) if _PADDED[0] <= n <= _PADDED[1] else n


def _next_power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _has_hooks(module: nn.Module) -> bool:
    return any(vars(module)[name] for name in vars(module) if name.endswith("_hooks"))


def _code(module: nn.Module, names: Mapping[int, str], *, padded: bool) -> Hashable:
    """The class of a module and its attributes, but for what the program keeps per member."""
    ignored = _OWN_STATE | ({"in_features", "out_features"} if padded else set())
    attributes = {
        # Hooks are numbered by the process; those of the state dict do not matter in training.
        name: [*value.values()] if name.endswith("_hooks") else value
        for name, value in vars(module).items()
        if name not in ignored and "state_dict" not in name
    }
    return _frozen(type(module), names), _frozen(attributes, names)


def _frozen(value: Any, names: Mapping[int, str], depth: int = 0) -> Hashable:
    """Give something equal for equal values; what has no visible value equals only itself."""
    if isinstance(value, float):
        return float, repr(value)
    if isinstance(value, bool | int | complex | str | bytes | None | torch.dtype | torch.device):
        return type(value), value
    if id(value) in names and isinstance(value, Tensor | nn.Module | type):
        return "own", names[id(value)]
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.detach().cpu().numpy().tobytes()
    if isinstance(value, type):
        if _is_importable(value):
            return value
        names = {**names, id(value): value.__qualname__}  # its methods may refer to it
    if depth < _DEPTH:
        return type(value), *(
            part if isinstance(part, _Itself | types.CodeType) else _frozen(part, names, depth + 1)
            for part in _parts(value)
        )
    return _Itself(value)


def _is_importable(kind: type) -> bool:
    """Whether a class is made once, when its module is imported, and not by a function."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _parts(value: Any) -> Iterable[Any]:
    """What a value is made of."""
    if isinstance(value, Mapping):
        return [*value.items()]
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, types.MethodType):
        return [value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, type):
        methods = {
            name: item
            for name, item in vars(value).items()
            if isinstance(item, types.FunctionType | property)
        }
        return [value.__qualname__, value.__bases__, methods]
    if dataclasses.is_dataclass(value):
        return [vars(value)]
    return [_Itself(value)]


class _Itself:
    """Equal only to what holds the same object, which it keeps alive."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
