"""Arguments, before they reach the core: numbers as numbers, with the documented exceptions."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from qcowkit.errors import InvalidArgumentError, OutOfRangeError

_LIMIT = 1 << 64


def unsigned(value: SupportsIndex, what: str) -> int:
    """A number of bytes, or an offset in bytes, from 0 on."""
    number = operator.index(value)
    if number < 0:
        raise InvalidArgumentError(f"{what} is negative: {number}")
    if number >= _LIMIT:
        raise OutOfRangeError(f"{what} is beyond 64 bits: {number}")
    return number


def word(value: str | bool | SupportsIndex, what: str = "an option") -> str:
    """The value of an option as QEMU spells it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(unsigned(value, what))
