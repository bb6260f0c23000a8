"""Contents as a tree of plain values and a few flat tensors: quick to copy, write and read.

Where an interval takes some milliseconds, pickling every tensor by itself would take as long.
"""

from __future__ import annotations

from collections import Counter
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
import hashlib
from io import BytesIO
import math
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor


_ARRAY = "optuna_ext:array"  # the only key of what stands for an array,
_TENSOR = "optuna_ext:tensor"  # and for a tensor
_SIMPLE = frozenset(
    (
        *(bool, int, float, complex, type(None), str, bytes),
        *(torch.Size, torch.device, torch.dtype),
    )
)
_FLAT = frozenset(  # what there is much of; uint8 and uint32 are states of random numbers
    (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int64, torch.uint8, torch.uint32),
    )
)

_Shapes = dict[int, tuple[int, ...]]  # by number


@dataclass(frozen=True)
class Packed:
    """What a checkpoint holds, taken apart; not to be changed.

    Attributes:
        tree: Plain values in containers, and in the place of every tensor its number.
        flats: Tensors of one dimension, and the shapes of those that lie there side by side.
        whole: The other tensors, by number.
    """

    tree: Any
    flats: list[tuple[Tensor, _Shapes]]
    whole: dict[int, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(map(_size, [*self.whole.values(), *(flat for flat, _ in self.flats)]))

    def sha256(self) -> str:
        """Return the SHA-256 of what never becomes a file, in hexadecimal digits."""
        digest = hashlib.sha256(pickle.dumps((self.tree, [shapes for _, shapes in self.flats])))
        for flat, _ in self.flats:
            digest.update(flat.view(torch.uint8).numpy().data)
        if self.whole:
            digest.update(_saved(self.whole))
        return digest.hexdigest()

    def __reduce__(self) -> tuple[Callable[[bytes], Packed], tuple[bytes]]:
        return _loaded, (_saved(vars(self)),)  # Python's own pickles lack some kinds of numbers

    def unpack(self) -> Any:
        """Return a copy of the content."""
        return unpacked(self.tree, self._tensors(copy=True))

    def plain(self) -> Any:
        """Return the content as files have it, where arrays are tensors; tensors may be shared."""
        return unpacked(self.tree, self._tensors(copy=False), arrays=False)

    def _tensors(self, *, copy: bool) -> dict[int, Tensor]:
        tensors = {i: tensor.clone() if copy else tensor for i, tensor in self.whole.items()}
        for flat, shapes in self.flats:
            parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
            for (i, shape), part in zip(shapes.items(), parts, strict=True):
                tensors[i] = part.view(shape).clone()
        return tensors


def pack(content: Mapping[str, Any], *, limit: float) -> Packed:
    """Take a content apart.

    Args:
        content:
            Of a checkpoint: states by the names of things, and the like.
        limit:
            Up to how many bytes of tensors are copied, to the CPU. Beyond, they stay the ones
            that are trained.

    Raises:
        TypeError: If there is something else than tensors, arrays, numbers, strings, bytes and
            containers of them, which may be loaded without running code.
    """
    taken = _Taken()
    tree = taken.plain(content, ())
    if sum(map(_size, taken.tensors)) > limit:
        return Packed(tree, [], {i: _compact(tensor) for i, tensor in enumerate(taken.tensors)})
    alike: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    whole = {}
    for i, tensor in enumerate(taken.tensors):
        if _is_plain(tensor) and tensor.dtype in _FLAT:
            alike.setdefault((tensor.device, tensor.dtype), {})[i] = tensor
        else:
            whole[i] = _compact(tensor).to("cpu", copy=True)
    flats = [
        (
            torch.cat([tensor.reshape(-1) for tensor in some.values()]).cpu(),
            {i: tuple(tensor.shape) for i, tensor in some.items()},
        )
        for some in alike.values()
    ]
    return Packed(tree, flats, whole)


class _Taken:
    """The tensors of a content, each of them once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[Any, int] = {}

    def plain(self, value: Any, path: tuple[Any, ...]) -> Any:
        """Return a value with numbers in the place of tensors; ``path`` leads to it."""
        kind = type(value)
        if kind in _SIMPLE:
            return value
        if isinstance(value, Tensor):
            return {_TENSOR: self._number(value.detach())}
        if kind is Counter:
            return value.copy()
        if kind is dict or isinstance(value, Mapping):
            copied = {key: self.plain(entry, (*path, key)) for key, entry in value.items()}
            if not hasattr(value, "_metadata"):
                return copied
            ordered = OrderedDict(copied)  # of a module, with the versions of its parts
            ordered._metadata = self.plain(dict(value._metadata), (*path, "_metadata"))  # type: ignore[attr-defined]
            return ordered
        if kind in (list, tuple, set):
            return kind(self.plain(entry, (*path, i)) for i, entry in enumerate(value))
        if isinstance(value, np.generic):
            return self.plain(value.item(), path)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            array = np.ascontiguousarray(value).reshape(value.shape)
            return {_ARRAY: self.plain(torch.from_numpy(array), path)}
        _, name, *keys = path
        name = f"{name}{''.join(f'[{key!r}]' for key in keys)}"
        raise TypeError(
            f"`{name}` is of type {kind.__name__}, but a checkpoint holds tensors, arrays, "
            "numbers, strings, bytes and containers of them, as nothing else is safe to load."
        )

    def _number(self, tensor: Tensor) -> int:
        same: Any = len(self.tensors)
        if _is_plain(tensor):  # tied weights are one tensor
            layout = (*tensor.shape, *tensor.stride())
            same = (tensor.data_ptr(), tensor.device, tensor.dtype, layout)
        number = self._numbers.setdefault(same, len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
        return number


def _saved(value: Any) -> bytes:
    file = BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _loaded(saved: bytes) -> Packed:
    return Packed(**torch.load(BytesIO(saved), weights_only=True))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in its storage."""
    is_lazy = tensor.is_conj() or tensor.is_neg()
    return type(tensor) is Tensor and tensor.layout is torch.strided and not is_lazy


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _compact(tensor: Tensor) -> Tensor:
    """Without the rest of the storage that it is a part of."""
    is_part = _is_plain(tensor) and tensor.untyped_storage().nbytes() > _size(tensor)
    return tensor.clone() if is_part else tensor


def unpacked(value: Any, tensors: Mapping[int, Tensor], *, arrays: bool = True) -> Any:
    """Return a content with everything in its place.

    Args:
        value:
            The ``tree`` of a :class:`Packed`, or what a file holds.
        tensors:
            By their numbers in the tree.
        arrays:
            Whether arrays are made of the tensors that stand for them.
    """
    fill = partial(unpacked, tensors=tensors, arrays=arrays)
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            if _TENSOR in value:
                return tensors[value[_TENSOR]]
            if _ARRAY in value and arrays:
                return fill(value[_ARRAY]).numpy()
        return {key: fill(entry) for key, entry in value.items()}
    if kind is OrderedDict:
        ordered = OrderedDict((key, fill(entry)) for key, entry in value.items())
        ordered._metadata = fill(value._metadata)  # type: ignore[attr-defined]
        return ordered
    if kind in (list, tuple, set):
        return kind(map(fill, value))
    return value.copy() if kind is Counter else value
