"""One checkpoint as a file: safe to load, and told from a damaged one by its SHA-256."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
import pickle
import tempfile
from typing import Any
from typing import BinaryIO
from typing import cast

import torch

from optuna_ext.checkpoints._errors import UnusableError
from optuna_ext.checkpoints._packed import Packed
from optuna_ext.checkpoints._packed import unpacked
from optuna_ext.checkpoints._recent import Recent


_FORMAT = 1
_IN_MEMORY = 1 << 28  # bytes; what is larger is prepared on the disk
_CHUNK = 1 << 20
_MAGIC = b"PK\x03\x04"  # a zip archive; what torch wrote before was a bare pickle


def dump(content: Packed, *, directory: Path | None = None) -> tuple[BinaryIO, int, str]:
    """Return a file with a content, its size and its SHA-256.

    Args:
        content:
            What is to be written.
        directory:
            Where to prepare what is large; by default that of the system's temporary files.

    Raises:
        OSError: If there is no room for it.
    """
    file = _room(content.size, directory)
    try:
        torch.save({"format": _FORMAT, **content.plain()}, file)
    except BaseException as error:
        file.close()
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # the disk is full, which torch hides
        raise
    size = file.tell()
    return file, size, sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    file.seek(0)
    return hashlib.file_digest(cast(BytesIO, file), "sha256").hexdigest()


def load(
    stream: BinaryIO, *, size: int, sha256: str, recent: Recent, directory: Path | None = None
) -> Any:
    """Read what :func:`dump` wrote, on the CPU.

    Nothing is unpickled before the bytes are known to be the right ones, and then only what
    cannot run code. What is among the ``recent`` is checked likewise, but not unpickled.

    Raises:
        UnusableError: If the file is cut, altered, holds code, or is of another format.
    """
    kept = recent.get(sha256)
    digest, found = hashlib.sha256(), 0
    with _room(size, directory) as file:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            found += len(chunk)
            if kept is None:
                file.write(chunk)
        if found != size:
            raise UnusableError(f"has {found} bytes instead of {size}")
        if digest.hexdigest() != sha256:
            raise UnusableError("was altered: its SHA-256 is another one")
        if kept is not None:
            return kept.unpack()
        content = _unpickled(file)
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise UnusableError("is of a format that this version does not know")
    return unpacked(content, {})


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


def _room(size: int, directory: Path | None) -> BinaryIO:
    """Open a file for about so many bytes: in memory, or on the disk if they are many."""
    if size <= _IN_MEMORY:
        return BytesIO()
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory))
