from __future__ import annotations

from collections.abc import Sequence
import itertools
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeAlias


if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Subset

    Rows: TypeAlias = Tensor | Subset[Any] | Sequence[int]


def check_disjoint(**splits: Rows) -> None:
    """Refuse splits of the data that have rows in common.

    What tunes, what chooses between trials and what is reported must be different rows::

        check_disjoint(t1=t1_x, t2=t2_x, valid=valid_x, test=test_x)

    Args:
        **splits:
            Tensors of rows, subsets of one data set, or lists of indices; all of one kind.

    Raises:
        TypeError: If they are not of one kind.
        ValueError: If two have a row in common.

    Example:
        >>> check_disjoint(t2=[0, 1, 2], test=[2, 3])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: t2 and test must be disjoint, but have 1 row in common, ... row 2 of t2.
    """
    from torch import Tensor
    from torch.utils.data import Subset

    for kind in (Tensor, Subset):
        found = [isinstance(rows, kind) for rows in splits.values()]
        if any(found) and not all(found):
            raise TypeError(
                "The splits must be all tensors, all subsets or all lists of indices, but got "
                f"{[type(rows).__name__ for rows in splits.values()]}."
            )
    keys = {name: _keys(rows) for name, rows in splits.items()}
    for (name, rows), (other, others) in itertools.combinations(keys.items(), 2):
        known = set(others)
        common = [i for i, key in enumerate(rows) if key in known]
        if common:
            raise ValueError(
                f"{name} and {other} must be disjoint, but have {len(common)} "
                f"row{'s' if len(common) > 1 else ''} in common, the first of them row "
                f"{common[0]} of {name}."
            )


def _keys(rows: Rows) -> Sequence[int]:
    import torch
    from torch.utils.data import Subset

    if isinstance(rows, Subset):
        return rows.indices
    if isinstance(rows, torch.Tensor):
        if len(rows) == 0:
            return []
        flat = rows.detach().reshape(len(rows), -1).contiguous().cpu()
        return [hash(row.tobytes()) for row in flat.view(torch.uint8).numpy()]
    return rows
