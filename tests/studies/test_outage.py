from __future__ import annotations

from contextlib import closing
import errno
from pathlib import Path
import sqlite3
import time
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
import pytest
from sqlalchemy.exc import OperationalError

from studies import _outage
from studies import run
from studies._errors import UserError
from studies._interrupt import Interrupt
from studies._outage import is_outage
from studies._outage import Outage
from studies._outage import outage_in_a_sentence
from studies._outage import tolerant


if TYPE_CHECKING:
    from tests.studies.conftest import Toy

FULL = OSError(errno.ENOSPC, "No space left on device")


def raised_from(cause: BaseException) -> RuntimeError:
    try:
        raise RuntimeError("what came of it") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (raised_from(FULL), True),
        (StorageInternalError("commit"), True),
        (raised_from(OperationalError("SELECT 1", None, Exception("gone"))), True),
        (OSError(errno.ENOENT, "no such file"), False),
        (ValueError("a mistake of the objective"), False),
    ],
)
def test_what_is_an_outage(error: Exception, expected: bool) -> None:
    assert is_outage(error) is expected


def test_an_outage_is_sat_out_but_not_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(_outage, "_PAUSE", 0.0)
    outage = Outage(Interrupt())
    for _ in range(3):  # each of them with a success in between
        for passed in (0.0, 50.0, 9.0):
            now += passed
            outage.wait(FULL)
        outage.is_over()
    outage.wait(FULL)
    now += 61
    with pytest.raises(UserError, match="has not worked for 60 s: the same command goes on"):
        outage.wait(FULL)


def test_other_errors_are_raised_again() -> None:
    with pytest.raises(ValueError, match="a mistake"):
        Outage(Interrupt()).wait(ValueError("a mistake"))

    def mistake() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        tolerant(mistake)()
    with pytest.raises(ValueError, match="a mistake"), outage_in_a_sentence():
        mistake()


def test_an_outage_is_tolerated_or_said_in_a_sentence() -> None:
    def fail() -> None:
        raise raised_from(FULL)

    tolerant(fail)()
    with pytest.raises(UserError, match="does not work: .*No space left"), outage_in_a_sentence():
        fail()


def test_an_outage_that_was_told_in_a_sentence_stays_that() -> None:
    with pytest.raises(UserError, match="^no server answers$"), outage_in_a_sentence():
        raise UserError("no server answers") from raised_from(FULL)


def test_an_outage_without_words_is_named() -> None:
    silent = "does not work: StorageInternalError$"
    with pytest.raises(UserError, match=silent), outage_in_a_sentence():
        raise StorageInternalError


def test_a_damaged_file_is_named_at_once(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody waits for it as for an outage."""
    assert run.main(toy.arguments("--trials", 40)) == 0
    file = Path("toy.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(size // 2)
        damaged.write(b"\xff" * (size - size // 2))
    with pytest.raises(sqlite3.DatabaseError) as malformed, closing(sqlite3.connect(file)) as one:
        one.execute("SELECT * FROM trial_values, trial_params, trials").fetchall()
    assert not is_outage(raised_from(malformed.value))
    for workers in (1, 2):
        assert run.main(toy.arguments("--trials", 50, "--workers", workers)) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: the file of --storage toy.db is damaged (database disk")
