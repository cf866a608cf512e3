"""Tables: what images tell in rows, for data frames.

A :class:`Table` has Arrow's PyCapsule interface, so that polars, pandas, pyarrow, DuckDB and others take it over
without a copy: `polars.DataFrame(table)`, `pyarrow.table(table)`, `pandas.DataFrame.from_arrow(table)`. Without any of
them, it has a length, rows, slices and columns; and a column of numbers is memory that `memoryview` and NumPy look at
in place.

Offsets and lengths are `uint64` in bytes, kinds are dictionary-encoded strings, what is absent is null (`None`).

>>> with qcowkit.open("disk.qcow2") as image:
...     table = image.map()
>>> table.columns
('guest_offset', 'length', 'kind', 'host_offset', 'depth', 'compressed_length')
>>> table[1].kind
'data'
>>> sum(table["length"]) == 1 << 30
True
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    SupportsIndex,
    overload,
    runtime_checkable,
)

from qcowkit import _html, _qcowkit
from qcowkit._build import ColumnType, row_type

if TYPE_CHECKING:
    import numpy
    import polars
    from numpy.typing import NDArray

__all__ = ["ArrowTable", "Column", "Table"]

#: Rows that are turned into Python objects at once.
_BATCH = 4096


@runtime_checkable
class ArrowTable(Protocol):
    """A table of any library: whatever has Arrow's PyCapsule interface.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     isinstance(image.map(), qcowkit.table.ArrowTable)
    True
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The rows."""


class Column(_qcowkit.Column):
    """One column of a table: a sequence of values. `name`, `type` (as Arrow calls it) and `null_count` say what it is;
    `validity()` has a byte for each value, 1 where it is there, or is `None` where all are.

    A column of numbers without nulls has the buffer protocol: `memoryview(column)` and `numpy.asarray(column)` show its
    memory without a copy, read-only.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     lengths = image.map()["length"]
    >>> lengths.type, lengths.null_count, lengths[1]
    ('uint64', 0, 65536)
    >>> memoryview(lengths).format
    'Q'
    """

    def codes(self) -> Column:
        """The numbers that stand for the strings of a dictionary-encoded column: indices of `categories()`.

        Raises:
            ValueError: the column is of another type.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map()["kind"].codes().to_list()
        [4, 0, 4]
        """
        return Column(super().codes(), self.name)

    def data(self) -> Column:
        """The numbers as memory, also where some are absent; what stands in their place means nothing.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     memoryview(image.map()["host_offset"].data()).nbytes
        24
        """
        return Column(super().data(), self.name)

    def to_list(self) -> list[Any]:
        """The values as Python's own; what is absent is `None`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map()["kind"].to_list()
        ['unallocated', 'data', 'unallocated']
        """
        return self.values(0, len(self))

    def to_numpy(self) -> NDArray[Any]:
        """The values as a NumPy array.

        Numbers are not copied. Where some are absent it is a masked array over the same memory, and strings become an
        array of objects. For dictionary-encoded columns, `codes()` and `categories()` are cheaper.

        Raises:
            ModuleNotFoundError: NumPy is not installed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map()["length"].to_numpy().dtype
        dtype('uint64')
        """
        import numpy

        if self.type == "string":
            return numpy.array(self.to_list(), dtype=object)
        if self.type == "dictionary":
            names = numpy.array([*self.categories(), None], dtype=object)
            codes = numpy.asarray(self.codes().data())
            valid = self.validity()
            picked: NDArray[Any] = names[
                codes if valid is None else numpy.where(numpy.frombuffer(valid, "?"), codes, -1)
            ]
            return picked
        valid = self.validity()
        values: NDArray[Any] = numpy.asarray(memoryview(self.data()))
        if valid is None:
            return values
        masked: NDArray[Any] = numpy.ma.MaskedArray(values, mask=~numpy.frombuffer(valid, dtype=numpy.bool_))
        return masked

    def __array__(self, dtype: numpy.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        """For NumPy. Columns with nulls are refused: `to_numpy()` masks them."""
        if self.null_count and self.type not in ("string", "dictionary"):
            raise ValueError(f"the column {self.name!r} has nulls, which a plain array cannot hold: use to_numpy()")
        array = self.to_numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"the column {self.name!r} is of type {array.dtype}: another type needs a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        """A value, or those of a slice as a list."""
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step > 0:
                return self.values(start, max(start, stop))[::step]
            return self.values(stop + 1, start + 1)[::-1][::-step] if start > stop else []
        at = _row_of(at, len(self))
        return self.values(at, at + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _BATCH):
            yield from self.values(start, start + _BATCH)

    def __repr__(self) -> str:
        return f"<qcowkit.Column {self.name!r} of {len(self)} x {self.type}>"


class Table:
    """Rows with named columns, which never change.

    `len()` counts the rows; iterating gives each as a named tuple; `table[3]` is a row, `table[10:20]` a table (without
    a copy), `table["length"]` a :class:`Column`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     table = image.map()
    >>> [(row.guest_offset, row.length) for row in table][:2]
    [(0, 1048576), (1048576, 65536)]
    >>> len(table[:2])
    2
    """

    def __init__(self, table: _qcowkit.Table) -> None:
        self._table = table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], types: Mapping[str, ColumnType]) -> Table:
        """A table of your own.

        Args:
            rows: mappings; what a row does not have is null, and what `types` does not name is left out.
            types: name and type of each column, in order: "uint64", "uint32", "int64", "float64", "dictionary" (strings
                of which many are the same) or "string".

        Raises:
            TypeError, OverflowError: a value does not fit its column.
            ValueError: there is no such type.

        >>> table = qcowkit.Table.from_rows([{"name": "a", "bytes": 1}], {"name": "string", "bytes": "uint64"})
        >>> table[0].bytes
        1
        """
        all_rows = list(rows)
        columns: list[tuple[str, str, list[Any]]] = [
            (name, kind, [row.get(name) for row in all_rows]) for name, kind in types.items()
        ]
        return cls(_qcowkit.table_of(columns))

    @classmethod
    def _of_columns(cls, columns: list[tuple[str, str, list[Any]]]) -> Table:
        return cls(_qcowkit.table_of(columns))

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: tables travel to other processes, Dask's workers for example."""
        columns = [(name, kind, self[name].to_list()) for name, kind in self.types.items()]
        return Table._of_columns, (columns,)

    def __copy__(self) -> Table:
        # Tables never change.
        return self

    def __deepcopy__(self, memo: object) -> Table:
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order.

        >>> qcowkit.Table.from_rows([], {"a": "uint64"}).columns
        ('a',)
        """
        return tuple(self._table.column_names)

    @property
    def types(self) -> dict[str, str]:
        """The type of each column.

        >>> qcowkit.Table.from_rows([], {"a": "uint64"}).types
        {'a': 'uint64'}
        """
        return dict(zip(self._table.column_names, self._table.column_types, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the columns take.

        >>> qcowkit.Table.from_rows([{"a": 1}], {"a": "uint64"}).nbytes > 0
        True
        """
        return self._table.nbytes

    def column(self, name: str) -> Column:
        """A column by its name; `table[name]` is the same.

        Raises:
            KeyError: there is none of this name.

        >>> qcowkit.Table.from_rows([{"a": 1}], {"a": "uint64"}).column("a").to_list()
        [1]
        """
        return Column(self._table, name)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries.

        >>> qcowkit.Table.from_rows([{"a": 1}], {"a": "uint64"}).to_dicts()
        [{'a': 1}]
        """
        names = self.columns
        return [dict(zip(names, row, strict=True)) for row in self]

    def to_polars(self) -> polars.DataFrame:
        """As a data frame of polars, which must be installed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map().to_polars().columns[:2]
        ['guest_offset', 'length']
        """
        import polars

        return polars.DataFrame(self)

    def to_pandas(self) -> Any:
        """As a data frame of pandas, which must be installed, and pyarrow with it.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     list(image.map().to_pandas().columns)[:2]
        ['guest_offset', 'length']
        """
        return self.to_arrow().to_pandas()

    def to_arrow(self) -> Any:
        """As a table of pyarrow, which must be installed. Nothing is copied.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map().to_arrow().num_columns
        6
        """
        import pyarrow

        return pyarrow.table(self)

    @property
    def _row(self) -> type[Any]:
        return row_type(self.columns)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> Table: ...
    @overload
    def __getitem__(self, at: str) -> Column: ...
    def __getitem__(self, at: int | slice | str) -> Any:
        """A row by its number, rows by a slice, or a column by its name."""
        if isinstance(at, str):
            return self.column(at)
        if isinstance(at, slice):
            wanted = range(len(self))[at]
            return Table(self._table.slice(wanted.start if wanted else 0, len(wanted), wanted.step))
        at = _row_of(at, len(self))
        return self._row._make(self._table.rows(at, at + 1)[0])

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Any]:
        make = self._row._make
        for start in range(0, len(self), _BATCH):
            for row in self._table.rows(start, start + _BATCH):
                yield make(row)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        if self.columns != other.columns or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __arrow_c_schema__(self) -> object:
        """The schema, for other libraries."""
        return self._table.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The rows, for other libraries; always in the table's own schema."""
        return self._table.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        lines = [f"<qcowkit.Table of {len(self)} rows: {', '.join(self.columns)}>"]
        lines += [f"  {', '.join(f'{name}={value!r}' for name, value in row._asdict().items())}" for row in self[:5]]
        if len(self) > 5:
            lines.append(f"  ... and {len(self) - 5} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = self[:20]
        rows = [[_html.cell(name, value) for name, value in row._asdict().items()] for row in shown]
        note = "" if len(self) <= 20 else f"the first 20 of {len(self):,} rows"
        return _html.page(f"{len(self):,} rows", _html.table(self.columns, rows), note)


def _row_of(at: SupportsIndex, rows: int) -> int:
    """The number of a row; negative ones count from the end."""
    number = operator.index(at)
    if not -rows <= number < rows:
        raise IndexError(f"there is no row {number}: the table has {rows}")
    return number % rows
