"""Ranges of the virtual disk, from anything that has them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex, TypeAlias

from qcowkit import _qcowkit
from qcowkit.table import ArrowTable

__all__ = ["RangesLike", "ranges"]

#: A table with the columns `guest_offset` (or `offset`, or `start`) and `length`, or an iterable of pairs (offset,
#: length); in bytes.
RangesLike: TypeAlias = "ArrowTable | Iterable[tuple[SupportsIndex, SupportsIndex]]"


def ranges(wanted: RangesLike) -> list[tuple[int, int]]:
    """Offsets and lengths, in bytes, of anything that has them."""
    if isinstance(wanted, (str, bytes)):
        raise TypeError("ranges are a table or an iterable of pairs (offset, length), not text")
    if hasattr(wanted, "__arrow_c_stream__"):
        return _qcowkit.ranges_of_table(wanted)
    pairs = []
    for pair in wanted:
        try:
            offset, length = pair
            pairs.append((_whole(offset), _whole(length)))
        except (TypeError, ValueError) as why:
            raise type(why)(f"a range is a pair (offset, length) of whole numbers from 0 on, not {pair!r}") from None
    return pairs


def _whole(number: SupportsIndex) -> int:
    whole = operator.index(number)
    if not 0 <= whole < 1 << 64:
        raise ValueError
    return whole
