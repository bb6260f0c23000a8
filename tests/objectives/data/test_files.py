from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NoReturn

import pytest
import requests

from objectives.data import CorruptDataError
from objectives.data import DataNotFoundError
from objectives.data import files


CONTENT = b"the data"
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's downloads, and the user's data directory, out of the tests."""
    monkeypatch.delenv(files.ENVIRONMENT, raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda project: cache / project)
    return cache


def published(url: str | None = None) -> files.Files:
    return files.Files(folder="set", url=url, sha256={"a.bin": HASH, "b.bin": HASH})


def write(directory: Path, *, content: bytes = CONTENT) -> None:
    (directory / "set").mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        (directory / "set" / name).write_bytes(content)


def refuse(*args: object, **kwargs: object) -> NoReturn:
    raise requests.ConnectionError("no route to host")


@pytest.mark.parametrize("by_argument", [True, False])
def test_a_directory_that_does_not_exist_is_refused_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_argument: bool
) -> None:
    typo = tmp_path / "heer"
    monkeypatch.setenv("OPTUNA_EXT_DATA", str(tmp_path if by_argument else typo))
    with pytest.raises(DataNotFoundError, match="heer must be the directory of the data sets"):
        published("http://host.invalid/").find(typo if by_argument else None)


def test_the_data_directory_is_an_argument_or_an_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "here")
    expected = [tmp_path / "here" / "set" / name for name in ("a.bin", "b.bin")]
    assert published().find(tmp_path / "here") == expected
    monkeypatch.setenv(files.ENVIRONMENT, str(tmp_path / "here"))
    assert published().find() == expected
    assert published().find(str(tmp_path / "here")) == expected


def test_missing_files_that_nobody_hands_out_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        published().find(tmp_path)
    assert str(caught.value) == (
        "There is no a.bin on this machine and nobody may hand it out: put a.bin, b.bin into the "
        "folder set of a directory and name that directory in data_dir or in the environment "
        "variable OPTUNA_EXT_DATA."
    )


def test_a_failed_download_says_what_to_put_where_and_hides_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(
        DataNotFoundError, match=r"http://h/a\.bin could not be downloaded: put a"
    ) as caught:
        published("http://h/").find()
    assert caught.value.__suppress_context__


def test_no_internet_is_noticed() -> None:
    with pytest.raises(DataNotFoundError, match="could not be downloaded"):
        published("http://host.invalid/").find()


class Response:
    """What pooch reads of a response of requests."""

    headers = {"content-length": str(len(CONTENT))}

    def __init__(self, content: bytes) -> None:
        self.content = content

    def raise_for_status(self) -> None:
        pass

    def iter_content(self, chunk_size: int) -> list[bytes]:
        return [self.content]


def test_a_download_is_checked_and_kept(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    asked = []

    def get(url: str, **kwargs: object) -> Response:
        asked.append(url)
        return Response(CONTENT)

    monkeypatch.setattr(requests, "get", get)
    found = published("http://h/").find()
    assert [path.read_bytes() for path in found] == [CONTENT, CONTENT]
    assert found == [own_cache / "optuna-ext" / "set" / name for name in ("a.bin", "b.bin")]
    assert published("http://h/").find() == found
    assert asked == ["http://h/a.bin", "http://h/b.bin"]  # once each


def test_a_download_with_another_hash_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: Response(b"an error page"))
    with pytest.raises(CorruptDataError, match=r"http://h/a\.bin does not have the SHA-256"):
        published("http://h/").find()
    assert not (own_cache / "optuna-ext" / "set" / "a.bin").exists()


def test_what_the_directory_lacks_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "get", lambda url, **kwargs: Response(CONTENT))
    write(tmp_path / "here")
    (tmp_path / "here" / "set" / "b.bin").unlink()
    first, second = published("http://h/").find(tmp_path / "here")
    assert first.parent == tmp_path / "here" / "set"
    assert second.parent != first.parent


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "here", content=b"broken")
    with pytest.raises(CorruptDataError, match=r"here/set/a\.bin does not have the SHA-256"):
        published("http://h/").find(tmp_path / "here")
