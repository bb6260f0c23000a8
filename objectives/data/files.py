"""Finding, downloading and checking the files of the data sets."""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
import os
from pathlib import Path


ENVIRONMENT = "OPTUNA_EXT_DATA"
"""The environment variable that names the directory of the data sets."""

_TIMEOUT = 10  # seconds without an answer, so that a machine without internet learns it soon


class DataNotFoundError(FileNotFoundError):
    """A data set is neither on this machine nor to be downloaded; says what to put where."""


class CorruptDataError(ValueError):
    """A file of a data set is not the published one; says which."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of one data set, as published.

    Args:
        folder:
            The folder they lie in, inside the data directory.
        sha256:
            The hash of every file, by its name.
        url:
            What to put before a name to download it; ``None`` if nobody may hand them out.
    """

    folder: str
    sha256: dict[str, str]
    url: str | None

    def find(self, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
        """Locate every file and check it against its hash.

        Args:
            data_dir:
                The directory that ``folder`` lies in; ``None`` means ``$OPTUNA_EXT_DATA``. A file
                that is not there is downloaded once, into pooch's cache.

        Returns:
            The paths, in the order of ``sha256``.

        Raises:
            DataNotFoundError: If the directory is missing, or if a file is not there and cannot
                be downloaded.
            CorruptDataError: If a file does not have its hash.
        """
        named = data_dir or os.environ.get(ENVIRONMENT)
        directory = Path(named) if named else None
        if directory is not None and not directory.is_dir():  # misspelled, say
            raise DataNotFoundError(
                f"{directory} must be the directory of the data sets, but there is no such "
                f"directory: correct data_dir or the environment variable {ENVIRONMENT}."
            )
        return [self._find(name, directory) for name in self.sha256]

    def _find(self, name: str, directory: Path | None) -> Path:
        path = None if directory is None else directory / self.folder / name
        if path is None or not path.is_file():
            return self._download(name)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256[name]:
            raise CorruptDataError(
                f"{path} does not have the SHA-256 of the published file; replace it by an "
                "intact copy, or remove it."
            )
        return path

    def _download(self, name: str) -> Path:
        import pooch

        if self.url is None:
            raise DataNotFoundError(
                f"There is no {name} on this machine and nobody may hand it out: {self._advice()}"
            )
        try:
            return Path(
                pooch.retrieve(
                    self.url + name,
                    known_hash=f"sha256:{self.sha256[name]}",
                    fname=name,
                    path=pooch.os_cache("optuna-ext") / self.folder,
                    downloader=pooch.HTTPDownloader(
                        progressbar=True, chunk_size=2**16, timeout=_TIMEOUT
                    ),
                )
            )
        # The reasons stay out of sight: a chain of socket errors helps nobody.
        except OSError:  # what the requests library raises is one
            raise DataNotFoundError(
                f"{self.url}{name} could not be downloaded: {self._advice()}"
            ) from None
        except ValueError:  # pooch keeps no file with another hash
            raise CorruptDataError(
                f"{self.url}{name} does not have the SHA-256 of the published file: "
                f"{self._advice()}"
            ) from None

    def _advice(self) -> str:
        return (
            f"put {', '.join(self.sha256)} into the folder {self.folder} of a directory and name "
            f"that directory in data_dir or in the environment variable {ENVIRONMENT}."
        )


MNIST = Files(
    folder="mnist",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    sha256={
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
)
"""LeCun and Cortes, CC BY-SA 3.0."""

FASHION = Files(
    folder="fashion-mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    sha256={
        "train-images-idx3-ubyte.gz": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
        ),
        "train-labels-idx1-ubyte.gz": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
        ),
    },
)
"""Xiao, Rasul and Vollgraf 2017, MIT, (c) Zalando SE."""

CATS = Files(
    folder="catvnoncat",
    url=None,  # course material without a license
    sha256={
        "train_catvnoncat.h5": "fbe56ab67c3ae28d564e3a644189117976d6b31af0a3ce9bb17dbf22908af242",
        "test_catvnoncat.h5": "6a9d39ce52fa85953c5834695b8534a30ed8cfd54971fb2f080b5a24d002b951",
    },
)
"""The cat pictures of the deeplearning.ai course "Neural Networks and Deep Learning"."""
