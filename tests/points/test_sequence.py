from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import copy
import pickle
import random

import numpy as np
import pytest

from optuna_ext.points import halton
from optuna_ext.points import PointSequence
from optuna_ext.points import SequenceKind
from optuna_ext.points import sobol


KINDS: tuple[SequenceKind, ...] = ("sobol", "halton")
ROWS = {"sobol": sobol, "halton": halton}

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("scramble", [True, False])
def test_any_order_gives_the_rows_of_the_function(kind: SequenceKind, scramble: bool) -> None:
    rows = ROWS[kind](3000, 20, seed=5, scramble=scramble)
    sequence = PointSequence(kind, seed=5, scramble=scramble)
    places = [(i, j) for i in range(0, 3000, 7) for j in (0, 1, 7, 8, 15, 16, 19)]
    random.Random(0).shuffle(places)
    for i, j in places:
        assert sequence.value(i, j) == rows[i, j]
    np.testing.assert_array_equal([sequence.row(i, 20) for i in range(70)], rows[:70])


def test_values_are_python_floats(kind: SequenceKind) -> None:
    assert type(PointSequence(kind, seed=0).value(0, 0)) is float


def test_going_on_and_back_beyond_the_cache(kind: SequenceKind) -> None:
    sequence = PointSequence(kind, seed=0)
    first = sequence.value(3, 2)
    far = [sequence.value(i, 2) for i in range(0, 200_000, 1000)]
    assert len(sequence._blocks) <= 64
    assert sequence.value(3, 2) == first
    assert far == ROWS[kind](200_000, 3, seed=0)[::1000, 2].tolist()


def test_copies_and_pickles_start_empty_and_agree(kind: SequenceKind) -> None:
    sequence = PointSequence(kind, seed=2**70, scramble=True)
    expected = [sequence.value(i, 9) for i in range(40)]
    for other in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert (other.kind, other.seed, other.scramble) == (kind, 2**70, True)
        assert [other.value(i, 9) for i in range(40)] == expected
    assert len(pickle.dumps(sequence)) < 500


def test_threads_share_a_sequence(kind: SequenceKind) -> None:
    rows = ROWS[kind](4000, 17, seed=1)
    sequence = PointSequence(kind, seed=1)

    def check(worker: int) -> bool:
        order = list(range(4000))
        random.Random(worker).shuffle(order)
        return all(sequence.value(i, worker % 17) == rows[i, worker % 17] for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(8)))


def test_interrupted_block_is_made_again(
    kind: SequenceKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = PointSequence(kind, seed=0)
    sequence.value(0, 0)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        engine = sequence._tiers[0]._engine
        engine.random(5)  # it has moved on, and nobody knows
        patch.setattr(engine, "random", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sequence.value(20, 0)
    assert sequence.value(20, 0) == ROWS[kind](21, 1, seed=0)[20, 0]


def test_out_of_range(kind: SequenceKind) -> None:
    sequence = PointSequence(kind, seed=0)
    sequence.row(0, 20)  # also where the blocks beside are known
    for index in (-1, -17, 2**30):
        with pytest.raises(ValueError, match=f"`index` must be at .* {index}"):
            sequence.value(index, 0)
    for column in (-1, -9, 30_000):
        with pytest.raises(ValueError, match=f"`column` must be at .* {column}"):
            sequence.value(0, column)
    with pytest.raises(ValueError, match="`d` must be at least 0, but got -1"):
        sequence.row(0, -1)


def test_wrong_arguments(kind: SequenceKind) -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0, but got -1"):
        PointSequence(kind, seed=-1)
    with pytest.raises(TypeError, match="`seed` must be an integer"):
        PointSequence(kind, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one of \('sobol', 'halton'\), but got 'grid'"):
        PointSequence("grid", seed=0)  # type: ignore[arg-type]
