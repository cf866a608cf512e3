"""Typed values of dictionaries, and named tuples of columns."""

from __future__ import annotations

import collections
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

__all__ = ["ColumnType", "build", "row_type"]

_T = TypeVar("_T")

#: The type of a column, as Arrow calls it.
ColumnType: TypeAlias = Literal["uint64", "uint32", "int64", "float64", "dictionary", "string"]


def build(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """A dataclass of the members of a dictionary, and of those within; members that it does not name are left out."""
    values = {
        name: _value(hint, data[key]) for name, key, hint in _fields(typing.cast(typing.Any, kind)) if key in data
    }
    return kind(**values)


#: What `_fields` found out of a class.
_FIELDS: dict[type[Any], list[tuple[str, str, Any]]] = {}


def _fields(kind: Any) -> list[tuple[str, str, Any]]:
    hints = typing.get_type_hints(kind)
    fields = (field for field in dataclasses.fields(kind) if field.init and not field.name.startswith("_"))
    return [(field.name, field.metadata.get("key", field.name), hints[field.name]) for field in fields]


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [choice for choice in typing.get_args(hint) if choice is not type(None)]
        return _value(inner[0], value) if len(inner) == 1 else value
    if origin is tuple:
        return tuple(_value(typing.get_args(hint)[0], item) for item in value)
    if hasattr(hint, "_of"):
        # A report keeps the dictionary that it is of.
        return hint._of(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value)
    return value


#: The named tuples that were made; not for ever, since tables can have any columns.
_ROWS: dict[tuple[str, ...], type[Any]] = {}


def row_type(columns: tuple[str, ...]) -> type[Any]:
    """The named tuple of rows with these columns."""
    known = _ROWS.get(columns)
    if known is None:
        if len(_ROWS) >= 256:
            _ROWS.clear()
        known = _ROWS.setdefault(columns, collections.namedtuple("Row", columns, rename=True))
    return known
