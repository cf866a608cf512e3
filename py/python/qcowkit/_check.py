"""Arguments, before they reach the core: numbers as numbers, with the documented exceptions."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from qcowkit.errors import InvalidArgumentError, OutOfRangeError

#: Numbers of bytes, and offsets, lie below it.
LIMIT = 1 << 64


def unsigned(value: SupportsIndex, what: str) -> int:
    """A number of bytes, or an offset in bytes, from 0 on."""
    number = operator.index(value)
    if number < 0:
        raise InvalidArgumentError(f"{what} is negative: {number}")
    if number >= LIMIT:
        raise OutOfRangeError(f"{what} is beyond 64 bits: {number}")
    return number


def between(value: SupportsIndex, what: str, least: int, most: int) -> int:
    """A number that is no offset and no length."""
    number = operator.index(value)
    if not least <= number <= most:
        raise InvalidArgumentError(f"{what} is from {least} to {most}, not {number}")
    return number


def text(value: object, what: str) -> str:
    """A name."""
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}")
    return value


def word(value: str | bool | SupportsIndex, what: str = "an option") -> str:
    """The value of an option as QEMU spells it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(unsigned(value, what))
