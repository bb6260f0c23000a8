"""Where checkpoints are: directories, this process, buckets, and any other artifact store."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import math
import os
from pathlib import Path
import re
import shutil
import time
from typing import Any
from typing import BinaryIO
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
import uuid

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_ext._rdb import accept_experimental
from optuna_ext.checkpoints import _file
from optuna_ext.checkpoints._packed import Packed
from optuna_ext.checkpoints._recent import Recent


if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_FORMS = "a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, ':memory:' or an artifact store"


class Place:
    """An artifact store of Optuna, and the little more that keeping checkpoints needs.

    Args:
        store:
            The artifact store.
        prefix:
            Put before every name.
    """

    path: Path | None = None  # a directory for what does not fit into memory; None: the system's
    limit: float = 1 << 26  # bytes; of so much of what was written last, copies stay in memory

    def __init__(self, store: ArtifactStore, prefix: str = "") -> None:
        self._store = store
        self._prefix = prefix
        self._recent = Recent(self.limit)

    def dump(self, content: Packed) -> tuple[contextlib.AbstractContextManager[Any], int, str]:
        """Return what :meth:`write` writes, its size and its SHA-256."""
        file, size, sha256 = _file.dump(content, directory=self.path)
        self._recent.put(sha256, content)
        return file, size, sha256

    def load(self, name: str, *, size: int, sha256: str) -> Any:
        """Return the content of a file.

        Raises:
            ArtifactNotFound: If there is no file of this name.
            UnusableError: If it is another file.
        """
        with self._open(name) as stream:
            return _file.load(
                stream, size=size, sha256=sha256, recent=self._recent, directory=self.path
            )

    def is_whole(self, name: str, sha256: str) -> bool:
        """Return whether there is a file of this name, and unchanged."""
        try:
            with self._open(name) as stream:
                return _file.sha256_of(stream) == sha256
        except (ArtifactNotFound, OSError):
            return False

    def _open(self, name: str) -> BinaryIO:
        return self._store.open_reader(self._prefix + name)

    def write(self, name: str, file: Any) -> None:
        """Write what :meth:`dump` returned, whole or not at all, over what has this name."""
        file.seek(0)
        self._store.write(self._prefix + name, file)

    def remove(self, name: str) -> None:
        """Delete a file, if there is one of this name."""
        with contextlib.suppress(ArtifactNotFound):
            self._store.remove(self._prefix + name)

    def check(self) -> None:
        """Write a file and remove it; whatever the store raises if that is not possible."""
        name = f"{uuid.uuid4().hex}.tmp"
        self.write(name, io.BytesIO(b"check"))
        self.remove(name)

    def renew(self, name: str) -> bool:
        """Make a file as young as a new one; return whether that was possible."""
        return False

    def is_gone(self, name: str) -> bool:
        """Return whether it is certain that there is no file of this name."""
        return False

    def is_young(self, name: str, seconds: float) -> bool:
        """Return whether it is certain that a file is younger than that."""
        return False

    def entries(self, start: str) -> Iterator[tuple[str, float]]:
        """Yield name and age, in seconds, of the files whose names begin with ``start``."""
        return iter(())


class Directory(Place):
    """Files in a directory, each written to the side, synchronized, and only then named.

    Optuna's own store writes in place: a reader may see half a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path).expanduser().absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(f"{self.path} must be a directory.") from error
        except OSError as error:
            reason = error.strerror or error
            raise type(error)(f"{self.path} cannot be made a directory: {reason}.") from error
        super().__init__(FileSystemArtifactStore(self.path))

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, file: Any) -> None:
        """Write a file whole or not at all: power may fail at any moment."""
        aside = self.path / f"{name}.{uuid.uuid4().hex}.tmp"
        file.seek(0)
        try:
            with aside.open("xb") as opened:
                shutil.copyfileobj(file, opened, 1 << 20)
                opened.flush()
                os.fsync(opened.fileno())
            aside.replace(self.path / name)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        self._synchronize()

    def _synchronize(self) -> None:
        """Make a new name outlast a power failure, where directories can be opened."""
        if os.name == "posix":
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def renew(self, name: str) -> bool:
        """Set the time of the last change to now."""
        try:
            os.utime(self.path / name)
        except OSError:
            return False
        return True

    def is_gone(self, name: str) -> bool:
        """Look."""
        return not (self.path / name).exists()

    def is_young(self, name: str, seconds: float) -> bool:
        """Look."""
        with contextlib.suppress(FileNotFoundError):
            return time.time() - (self.path / name).stat().st_mtime < seconds
        return False

    def entries(self, start: str) -> Iterator[tuple[str, float]]:
        """Also yield what a killed worker was writing."""
        with os.scandir(self.path) as files:
            for file in files:
                if file.name.startswith(start):
                    with contextlib.suppress(FileNotFoundError):  # deleted by another worker
                        yield file.name, time.time() - file.stat().st_mtime


class _Memory(Place):
    """What only this process sees, gone with it, and never made a file."""

    limit = math.inf

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Packed, float]] = {}

    def __str__(self) -> str:
        return "memory"

    def dump(self, content: Packed) -> tuple[contextlib.AbstractContextManager[Any], int, str]:
        return contextlib.nullcontext(content), content.size, content.sha256()

    def load(self, name: str, *, size: int, sha256: str) -> Any:
        del size, sha256
        if name not in self._kept:
            raise ArtifactNotFound("not found")
        return self._kept[name][0].unpack()

    def is_whole(self, name: str, sha256: str) -> bool:
        del sha256
        return name in self._kept

    def write(self, name: str, file: Any) -> None:
        self._kept[name] = file, time.time()

    def remove(self, name: str) -> None:
        self._kept.pop(name, None)

    def check(self) -> None:
        pass

    def renew(self, name: str) -> bool:
        if name in self._kept:
            self.write(name, self._kept[name][0])
        return name in self._kept

    def is_gone(self, name: str) -> bool:
        return name not in self._kept

    def is_young(self, name: str, seconds: float) -> bool:
        return name in self._kept and time.time() - self._kept[name][1] < seconds

    def entries(self, start: str) -> Iterator[tuple[str, float]]:
        for name, (_, written) in [*self._kept.items()]:
            if name.startswith(start):
                yield name, time.time() - written


class _S3(Place):
    def __init__(self, bucket: str, prefix: str = "", *, store: Any = None) -> None:
        from optuna.artifacts import Boto3ArtifactStore

        super().__init__(store or Boto3ArtifactStore(bucket), prefix)
        self._bucket = bucket

    def __str__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def entries(self, start: str) -> Iterator[tuple[str, float]]:
        client: Any = self._store.client  # type: ignore[attr-defined]
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + start
        )
        for page in pages:
            for found in page.get("Contents", ()):
                age = time.time() - found["LastModified"].timestamp()
                yield found["Key"].removeprefix(self._prefix), age


class _GCS(Place):
    def __init__(self, bucket: str, prefix: str = "", *, store: Any = None) -> None:
        super().__init__(store or _gcs_store(bucket), prefix)
        self._bucket = bucket

    def __str__(self) -> str:
        return f"gs://{self._bucket}/{self._prefix}"

    def entries(self, start: str) -> Iterator[tuple[str, float]]:
        client: Any = self._store.client  # type: ignore[attr-defined]
        for blob in client.list_blobs(self._bucket, prefix=self._prefix + start):
            yield blob.name.removeprefix(self._prefix), time.time() - blob.updated.timestamp()


class _Other(Place):
    def __str__(self) -> str:
        return type(self._store).__name__


def open_place(place: str | os.PathLike[str] | ArtifactStore) -> Place:
    """Open a place of checkpoints.

    Args:
        place:
            A directory, which is created if need be; a URL; or an artifact store of Optuna.

    Raises:
        ValueError: If it is a URL of another kind.
        TypeError: If it is something else.
        OSError: If the directory cannot be made.
        ImportError: If the client of the bucket is not installed.
    """
    if isinstance(place, os.PathLike):
        return Directory(place)
    if isinstance(place, str):
        return _from_text(place)
    if type(place) is FileSystemArtifactStore:  # not of a subclass, which may write in its own way
        return Directory(_directory_of(place))
    if not all(hasattr(place, method) for method in ("open_reader", "write", "remove")):
        raise TypeError(f"`place` must be {_FORMS}, but is of type {type(place).__name__}.")
    store: Any = place
    match type(place).__name__:
        case "Boto3ArtifactStore":
            return _S3(store.bucket, store=store)
        case "GCSArtifactStore":
            return _GCS(store.bucket_name, store=store)
    return _Other(place)


def _from_text(place: str) -> Place:
    if place == ":memory:":
        return _Memory()
    if not re.match(r"[A-Za-z][\w+.-]+://", place):
        if not place:
            raise ValueError(f"`place` must be {_FORMS}, but is ''.")
        return Directory(place)
    url = urlsplit(place)
    if url.scheme == "file" and not url.netloc:
        return Directory(url.path)
    if url.scheme not in ("s3", "gs") or not url.netloc:
        raise ValueError(f"`place` must be {_FORMS}, but is {place!r}.")
    prefix = url.path.strip("/")
    prefix = f"{prefix}/" if prefix else ""
    try:
        return (_S3 if url.scheme == "s3" else _GCS)(url.netloc, prefix)
    except ImportError as error:
        package = "optuna-ext[s3]" if url.scheme == "s3" else "google-cloud-storage"
        raise ImportError(f"{url.scheme}:// needs a client: pip install '{package}'") from error


def _directory_of(store: FileSystemArtifactStore) -> Path:
    """Ask a store for its directory, which only the files it opens tell."""
    probe = f"{uuid.uuid4().hex}.tmp"
    store.write(probe, io.BytesIO())
    try:
        with store.open_reader(probe) as file:
            return Path(file.name).absolute().parent
    finally:
        store.remove(probe)


def _gcs_store(bucket: str) -> Any:
    from optuna.artifacts import GCSArtifactStore

    with accept_experimental():
        return GCSArtifactStore(bucket)
