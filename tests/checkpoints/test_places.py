"""Directories, buckets and other artifact stores."""

from __future__ import annotations

from collections.abc import Iterator
import datetime
import io
from pathlib import Path
import sys
import tempfile
from types import ModuleType
from typing import Any

import optuna
from optuna.artifacts import Backoff
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import FixedTrial
import pytest
import torch

from optuna_ext.checkpoints import _file
from optuna_ext.checkpoints import CheckpointError
from optuna_ext.checkpoints import CheckpointStore
from optuna_ext.lineage import PARENT


def model(value: float) -> torch.nn.ParameterList:
    return torch.nn.ParameterList([torch.full((3,), value)])


def check(store: CheckpointStore) -> list[str]:
    """Let a child go on, collect, and return the names of the files that were deleted."""
    study = optuna.create_study(study_name="s")
    trial = study.ask()
    run = store.resume(trial, model=model(0.0))
    for step in range(1, 5):
        run.save(step)
    trial.set_user_attr("note", 1)
    study.enqueue_trial({}, user_attrs={PARENT: 0})
    other = model(1.0)
    assert store.resume(study.ask(), model=other).step == 4
    assert torch.equal(other[0], torch.zeros(3))
    deleted = store.collect(study)
    assert store.resume(trial, model=other).step == 4
    return deleted


def test_a_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    assert len(check(CheckpointStore(place, grace=0))) == 2
    assert len([*place.iterdir()]) == 2
    assert all(path.name.startswith("s-") and path.suffix == ".pt" for path in place.iterdir())


def test_a_file_url_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(CheckpointStore(f"file://{tmp_path}/one"))
    monkeypatch.setenv("HOME", str(tmp_path))
    check(CheckpointStore("~/two"))
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_the_place_stays_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("here")
    monkeypatch.chdir("/")
    check(store)
    assert [*(tmp_path / "here").iterdir()]


def test_memory() -> None:
    assert len(check(CheckpointStore(":memory:", grace=0))) == 2


def test_the_artifact_store_of_a_directory_writes_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's own would leave half a file under the final name."""
    store = CheckpointStore(FileSystemArtifactStore(tmp_path), grace=0)
    assert [*tmp_path.iterdir()] == []
    assert len(check(store)) == 2

    def fail(source: Any, target: Any, length: int = 0) -> None:
        target.write(source.read(100))
        raise OSError(28, "No space left on device")

    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(CheckpointError, match="No space left on device; the one before it is unc"):
        store.resume(FixedTrial({}), model=model(2.0)).save(1)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_any_other_artifact_store(tmp_path: Path) -> None:
    store = CheckpointStore(Backoff(FileSystemArtifactStore(tmp_path)), grace=0)
    assert check(store) == []


class Full(FileSystemArtifactStore):
    """A store that has its own way of writing."""

    def write(self, artifact_id: str, content_body: Any) -> None:
        raise OSError(28, "No space left on device")


def test_a_store_derived_from_optunas_writes_in_its_own_way(tmp_path: Path) -> None:
    store = CheckpointStore(Full(tmp_path))
    with pytest.raises(CheckpointError, match="No space left on device; the one before it is unc"):
        store.resume(FixedTrial({}), model=model(2.0)).save(1)
    with pytest.raises(CheckpointError, match="nothing can be kept in Full: No space left on dev"):
        store.check()


@pytest.mark.parametrize("kind", ["directory", "memory", "store"])
def test_a_check_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    places: dict[str, Any] = {
        "directory": tmp_path,
        "memory": ":memory:",
        "store": FileSystemArtifactStore(tmp_path),
    }
    store = CheckpointStore(places[kind])
    store.check()
    assert [*store._place.entries("")] == []


def test_what_is_too_large_for_memory_is_prepared_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not among the system's temporary files, where there may be little room."""
    monkeypatch.setattr(_file, "_IN_MEMORY", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    check(CheckpointStore(tmp_path / "kept"))

    class Short(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Short())
    before = [*(tmp_path / "kept").iterdir()]
    with pytest.raises(CheckpointError, match="No space left on device; the one before") as caught:
        CheckpointStore(tmp_path / "kept").resume(FixedTrial({}), model=model(2.0)).save(1)
    assert isinstance(caught.value.__cause__, OSError)  # which the studies wait to end
    assert [*(tmp_path / "kept").iterdir()] == before


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of S3 within this process."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


def keys(s3: Any) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]


@pytest.mark.parametrize(
    "url", ["s3://bucket/some/where", "s3://bucket/some/where/", "s3://bucket"]
)
def test_s3(url: str, s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="s-another.pt", Body=b"")
    deleted = check(CheckpointStore(url, grace=0))
    assert len(deleted) == 2
    prefix = url.removeprefix("s3://bucket").strip("/")
    mine = [key for key in keys(s3) if key != "s-another.pt"]
    assert len(mine) == 2
    assert all(key.startswith(f"{prefix}/s-" if prefix else "s-") for key in mine)


def test_an_artifact_store_of_s3(s3: Any) -> None:
    from optuna.artifacts import Boto3ArtifactStore

    assert len(check(CheckpointStore(Boto3ArtifactStore("bucket", s3), grace=0))) == 2


def test_s3_without_the_bucket_or_the_file(s3: Any) -> None:
    store = CheckpointStore("s3://nobody")
    with pytest.raises(CheckpointError, match="of step 1 in s3://nobody/: .*NoSuchBucket"):
        store.resume(FixedTrial({}), model=model(0.0)).save(1)
    store = CheckpointStore("s3://bucket")
    trial = FixedTrial({})
    store.resume(trial, model=model(0.0)).save(1)
    s3.delete_object(Bucket="bucket", Key=keys(s3)[0])
    with pytest.raises(CheckpointError, match="trial 0 at step 1 is not in s3://bucket/"):
        store.load(trial, model=model(0.0))


def test_google_cloud_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of its client, with the four calls that are made."""
    blobs: dict[str, Blob] = {}

    class Blob:
        def __init__(self, name: str) -> None:
            self.name = name
            self.updated = datetime.datetime.now(datetime.UTC)

        def upload_from_string(self, data: bytes) -> None:
            self.data = data
            blobs[self.name] = self

        def download_as_bytes(self) -> bytes:
            return self.data

    class Bucket:
        blob = staticmethod(Blob)
        get_blob = staticmethod(blobs.get)
        delete_blob = staticmethod(blobs.pop)

    class Client:
        def bucket(self, name: str) -> Bucket:
            assert name == "bucket"
            return Bucket()

        def list_blobs(self, name: str, *, prefix: str) -> list[Blob]:
            assert name == "bucket"
            return [blob for key, blob in blobs.items() if key.startswith(prefix)]

    storage = ModuleType("google.cloud.storage")
    storage.Client = Client  # type: ignore[attr-defined]
    cloud = ModuleType("google.cloud")
    cloud.storage = storage  # type: ignore[attr-defined]
    google = ModuleType("google")
    google.cloud = cloud  # type: ignore[attr-defined]
    modules = {"google": google, "google.cloud": cloud, "google.cloud.storage": storage}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "optuna.artifacts._gcs", raising=False)
    import optuna.artifacts._gcs as fresh

    monkeypatch.setattr(optuna.artifacts, "GCSArtifactStore", fresh.GCSArtifactStore)
    assert len(check(CheckpointStore("gs://bucket/some/where", grace=0))) == 2
    assert len(blobs) == 2
    assert all(name.startswith("some/where/s-") for name in blobs)
    monkeypatch.delitem(sys.modules, "optuna.artifacts._gcs")


def test_without_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'boto3'")

    monkeypatch.setattr(optuna.artifacts, "Boto3ArtifactStore", missing)
    with pytest.raises(ImportError, match=r"s3:// needs a client: pip install 'optuna-ext\[s3\]'"):
        CheckpointStore("s3://bucket")
    monkeypatch.setattr(optuna.artifacts, "GCSArtifactStore", missing)
    with pytest.raises(ImportError, match="gs:// needs a client: pip install 'google-cloud-st"):
        CheckpointStore("gs://bucket")


@pytest.mark.parametrize("place", ["", "http://host/x", "s3:///x", "gs://", "file://host/x"])
def test_no_such_place(place: str) -> None:
    with pytest.raises(ValueError, match="`place` must be a directory, s3://BUCKET.*, but"):
        CheckpointStore(place)


def test_not_a_place_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="or an artifact store, but is of type int"):
        CheckpointStore(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="or an artifact store, but is of type BytesIO"):
        CheckpointStore(io.BytesIO())  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="must be a directory"):
            CheckpointStore(place)
