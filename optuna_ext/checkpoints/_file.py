"""One checkpoint as a file: safe to load, and told from a damaged one by its SHA-256."""

from __future__ import annotations

from collections import Counter
from collections import OrderedDict
from collections.abc import Mapping
import hashlib
from io import BytesIO
from pathlib import Path
import pickle
import tempfile
from typing import Any
from typing import BinaryIO
from typing import cast

import numpy as np
import torch
from torch import Tensor

from optuna_ext.checkpoints._errors import UnusableError
from optuna_ext.checkpoints._recent import Recent


FORMAT = 1
_IN_MEMORY = 1 << 28  # bytes; what is larger is prepared on the disk
_CHUNK = 1 << 20
_MAGIC = b"PK\x03\x04"  # a zip archive; what torch wrote before was a bare pickle
_ARRAY = "optuna_ext:array"
_NUMBERS = (bool, int, float, complex)
_SIMPLE = (*_NUMBERS, type(None), str, bytes, torch.Size, torch.device, torch.dtype)


def dump(
    content: Mapping[str, Any], *, directory: Path | None = None
) -> tuple[BinaryIO, int, str]:
    """Return a file with the content, its size and its SHA-256.

    Args:
        content:
            With its ``format``, and otherwise what :func:`plain` returned.
        directory:
            Where to prepare what is large; by default that of the system's temporary files.

    Raises:
        OSError: If there is no room for it.
    """
    file = _room(directory)
    try:
        torch.save(content, file)
    except BaseException as error:
        file.close()
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # the disk is full, which torch hides
        raise
    size = file.tell()
    file.seek(0)
    sha256 = hashlib.file_digest(cast(BytesIO, file), "sha256").hexdigest()
    file.seek(0)
    return file, size, sha256


def load(
    stream: BinaryIO, *, size: int, sha256: str, recent: Recent, directory: Path | None = None
) -> dict[str, Any]:
    """Read what :func:`dump` wrote, on the CPU.

    Nothing is unpickled before the bytes are known to be the right ones, and then only what
    cannot run code. What is among the ``recent`` is checked likewise, but not unpickled.

    Raises:
        UnusableError: If the file is cut, altered, holds code, or is of a later format.
    """
    with _room(directory) as file:
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
        if file.tell() != size:
            raise UnusableError(f"has {file.tell()} bytes instead of {size}")
        if digest.hexdigest() != sha256:
            raise UnusableError("was altered: its SHA-256 is another one")
        content = recent.get(sha256) or _unpickled(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UnusableError("is of a format that this version does not know")
    opened: dict[str, Any] = _with_arrays(content)
    return opened


def _unpickled(file: BinaryIO) -> Any:
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UnusableError("is no checkpoint")
    file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnusableError("holds code or objects, which are never loaded") from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UnusableError("is no checkpoint") from error


def _room(directory: Path | None) -> BinaryIO:
    """Open a file in memory that moves to the disk when it becomes large."""
    where = None if directory is None else str(directory)
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=where))


def plain(value: Any, *, name: str) -> Any:
    """Return a state as what may be loaded without running code.

    Args:
        value:
            What ``state_dict`` returned.
        name:
            How the value is called in the error message.

    Raises:
        TypeError: If there is something else than tensors, arrays, numbers, strings, bytes and
            containers of them.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return _compact(value)
    if kind in _SIMPLE or kind is Counter:
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), name=name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value).reshape(value.shape))}
    if isinstance(value, Mapping):
        copied = {key: plain(entry, name=f"{name}[{key!r}]") for key, entry in value.items()}
        if not hasattr(value, "_metadata"):
            return copied
        ordered = OrderedDict(copied)  # of a module, with the versions of its parts
        ordered._metadata = plain(dict(value._metadata), name=f"{name}._metadata")  # type: ignore[attr-defined]
        return ordered
    if kind in (list, tuple, set):
        return kind(plain(entry, name=f"{name}[{i}]") for i, entry in enumerate(value))
    raise TypeError(
        f"`{name}` is of type {kind.__name__}, but a checkpoint holds tensors, arrays, numbers, "
        "strings, bytes and containers of them, as nothing else is safe to load."
    )


def _with_arrays(value: Any) -> Any:
    """Undo what :func:`plain` did to arrays."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        for key, entry in value.items():
            value[key] = _with_arrays(entry)
    elif type(value) in (list, tuple):
        return type(value)(_with_arrays(entry) for entry in value)
    return value


def _compact(tensor: Tensor) -> Tensor:
    """Without the rest of the storage that it is a part of."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or type(tensor) is not Tensor:
        return tensor
    own = tensor.numel() * tensor.element_size()
    return tensor if tensor.untyped_storage().nbytes() <= own else tensor.clone()
