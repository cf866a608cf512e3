"""Tables: rows, slices, columns, and the libraries that take them over."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy
import pandas
import polars
import pyarrow
import pytest
from conftest import Run

import qcowkit
from qcowkit import Column, Table
from qcowkit._ranges import ranges
from qcowkit.table import ArrowTable

CLUSTER = 65536


@pytest.fixture
def image(qemu_img: Run, qemu_io: Run, tmp_path: Path) -> Iterator[qcowkit.Image]:
    """64 MiB: data, compressed data, zeros with and without a place, and nothing."""
    path = tmp_path / "kinds.qcow2"
    qemu_img("create", "-f", "qcow2", str(path), "64M")
    qemu_io(str(path), "write 0 1M", "write -c 1M 64k", "write 2M 1M", "write -z 2M 512k", "write -z -u 4M 1M")
    with qcowkit.open(path) as image:
        yield image


def test_the_map_is_whole_sorted_and_merged(image: qcowkit.Image) -> None:
    rows = list(image.map())
    at = 0
    for row in rows:
        assert row.guest_offset == at
        at += row.length
    assert at == image.size
    kinds = [(row.guest_offset, row.length, row.kind) for row in rows]
    assert kinds[:4] == [
        (0, 1 << 20, "data"),
        (1 << 20, CLUSTER, "compressed"),
        ((1 << 20) + CLUSTER, (1 << 20) - CLUSTER, "unallocated"),
        (2 << 20, 512 << 10, "zero_retained"),
    ]
    assert {row.kind for row in rows} == {"data", "compressed", "zero", "zero_retained", "unallocated"}
    by_kind = {row.kind: row for row in rows}
    assert by_kind["data"].host_offset is not None
    assert by_kind["unallocated"].host_offset is None
    assert by_kind["compressed"].compressed_length > 0
    assert by_kind["data"].compressed_length is None
    assert {row.depth for row in rows} == {0}


def test_a_part_of_the_map(image: qcowkit.Image) -> None:
    part = image.map(CLUSTER, 3 * CLUSTER)
    assert [(row.guest_offset, row.length) for row in part] == [(CLUSTER, 2 * CLUSTER)]
    assert len(image.map(5, 5)) == 0
    with pytest.raises(qcowkit.errors.OutOfRangeError):
        image.map(0, image.size + 1)
    with pytest.raises(ValueError, match="negative"):
        image.map(-1)


def test_runs_clusters_gaps_and_refcounts_fit_together(image: qcowkit.Image) -> None:
    runs, clusters = image.runs(), image.clusters()
    assert sum(clusters["length"]) == image.file_size
    assert clusters[0].kind == "header"
    assert clusters[0].refcount == clusters[0].references == 1
    placed = sum(row.length for row in image.map() if row.kind in ("data", "zero_retained"))
    assert sum(runs["length"]) == placed
    assert runs[0].jump is None
    data = {row.host_offset: row.guest_offset for row in clusters if row.structure == "data_cluster"}
    assert data[runs[0].host_offset] == runs[0].guest_offset
    assert sum(row.length for row in image.refcounts() if row.refcount == 0) == sum(image.gaps()["length"])
    part = image.clusters(CLUSTER, 2 * CLUSTER)
    assert (part[0].host_offset, part[0].length) == (CLUSTER, CLUSTER)
    with pytest.raises(qcowkit.errors.InvalidArgumentError):
        image.clusters(data_file=True)


def test_rows_slices_and_columns(image: qcowkit.Image) -> None:
    table = image.map()
    rows = list(table)
    assert len(table) == len(rows)
    assert table[0] == rows[0]
    assert table[-1] == rows[-1]
    assert list(table[1:3]) == rows[1:3]
    assert list(table[::-1]) == rows[::-1]
    assert list(table[5:0:-2]) == rows[5:0:-2]
    assert len(table[3:3]) == 0
    assert table == table[:]
    assert table != table[1:]
    with pytest.raises(IndexError):
        table[len(table)]
    with pytest.raises(KeyError):
        table["nothing"]
    column = table["length"]
    assert isinstance(column, Column)
    assert column.to_list() == [row.length for row in rows] == list(column)
    assert column[-1] == rows[-1].length
    assert column[1:4] == column.to_list()[1:4]
    assert column[::-1] == column.to_list()[::-1]
    assert column[4:1:-2] == column.to_list()[4:1:-2]
    assert table.types["kind"] == "dictionary"
    assert table.nbytes > 0
    assert table.to_dicts()[0]["kind"] == "data"
    assert "Row" not in repr(table)
    assert "guest_offset=0" in repr(table)


def test_columns_are_memory(image: qcowkit.Image) -> None:
    column = image.map()["guest_offset"]
    view = memoryview(column)
    assert (view.format, view.readonly, view.shape, view.tolist()) == ("Q", True, (len(column),), column.to_list())
    array = numpy.asarray(column)
    assert array.dtype == numpy.uint64
    assert array.tolist() == column.to_list()
    assert not array.flags.writeable
    address = array.__array_interface__["data"][0]
    assert numpy.asarray(column).__array_interface__["data"][0] == address
    # The memory stays as long as the array does.
    del view, column
    gc.collect()
    assert array[0] == 0
    assert numpy.asarray(image.map()["guest_offset"], dtype=float).dtype == float


def test_columns_with_nulls_are_masked(image: qcowkit.Image) -> None:
    column = image.map()["host_offset"]
    assert column.null_count > 0
    masked = column.to_numpy()
    assert isinstance(masked, numpy.ma.MaskedArray)
    assert masked.tolist() == column.to_list()
    with pytest.raises(ValueError, match="to_numpy"):
        numpy.asarray(column)
    with pytest.raises(BufferError, match="nulls"):
        memoryview(column)


def test_dictionary_columns(image: qcowkit.Image) -> None:
    column = image.map()["kind"]
    names = column.categories()
    assert [names[code] for code in column.codes().to_list()] == column.to_list()
    assert column.to_numpy().tolist() == column.to_list()
    assert memoryview(column.codes()).format == "b"
    with pytest.raises(BufferError, match="to_list"):
        memoryview(column)
    with pytest.raises(ValueError, match="not dictionary"):
        image.map()["length"].codes()


def test_every_library_reads_the_same(image: qcowkit.Image) -> None:
    table = image.map()
    expected = table.to_dicts()
    assert isinstance(table, ArrowTable)
    assert polars.DataFrame(table).to_dicts() == expected
    assert table.to_polars().to_dicts() == expected
    assert pyarrow.table(table).to_pylist() == expected
    assert table.to_arrow().schema.field("kind").type == pyarrow.dictionary(pyarrow.int8(), pyarrow.string())
    frame = pandas.DataFrame.from_arrow(table)
    assert frame["length"].tolist() == [row["length"] for row in expected]
    assert table.to_pandas()["kind"].tolist() == [row["kind"] for row in expected]
    # DuckDB finds the variable `arrow` by its name.
    arrow = table.to_arrow()
    assert arrow.num_rows == len(table)
    found = duckdb.sql("select kind, sum(length)::ubigint from arrow group by kind")
    assert found is not None
    sums: dict[str, int] = {}
    for row in expected:
        sums[row["kind"]] = sums.get(row["kind"], 0) + row["length"]
    assert dict(found.fetchall()) == sums


def test_sliced_tables_are_lent_too(image: qcowkit.Image) -> None:
    table = image.map()
    assert polars.DataFrame(table[2:5]).to_dicts() == table.to_dicts()[2:5]
    assert polars.DataFrame(table[4:1:-1]).to_dicts() == table.to_dicts()[4:1:-1]
    assert numpy.asarray(table[2:5]["length"]).tolist() == table["length"].to_list()[2:5]


def test_tables_outlive_the_image(disk: Path) -> None:
    with qcowkit.open(disk) as image:
        table = image.map()
    assert table[0].length == 64 << 20


def test_many_rounds_do_not_grow() -> None:
    """What is lent is given back."""
    import resource

    table = Table.from_rows([{"a": at} for at in range(50_000)], {"a": "uint64"})
    for _ in range(20):
        polars.DataFrame(table)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(500):
        polars.DataFrame(table)
        memoryview(table["a"]).release()
        table["a"].to_numpy()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_tables_of_ones_own() -> None:
    rows = [{"name": "a", "n": 1, "share": 0.5, "delta": -3}, {"name": "b"}]
    types = {"name": "string", "n": "uint64", "share": "float64", "delta": "int64", "kind": "dictionary"}
    table = Table.from_rows(rows, types)  # type: ignore[arg-type]
    assert table[0] == ("a", 1, 0.5, -3, None)
    assert table[1] == ("b", None, None, None, None)
    assert polars.DataFrame(table).to_dicts() == table.to_dicts()
    with pytest.raises(ValueError, match="no column has the type"):
        Table.from_rows([], {"a": "text"})  # type: ignore[dict-item]
    with pytest.raises(OverflowError):
        Table.from_rows([{"a": -1}], {"a": "uint64"})
    with pytest.raises(TypeError):
        Table.from_rows([{"a": "x"}], {"a": "uint64"})


def test_ranges_come_from_anything() -> None:
    pairs = [(0, 65536), (1 << 20, 4096)]
    assert ranges(pairs) == pairs
    assert ranges((offset, length) for offset, length in pairs) == pairs
    assert ranges(numpy.array(pairs)) == pairs
    for name in ("guest_offset", "offset", "start"):
        data = {name: [0, 1 << 20], "length": [65536, 4096], "more": ["a", "b"]}
        assert ranges(polars.DataFrame(data)) == pairs
        assert ranges(pyarrow.table(data)) == pairs
        assert ranges(pandas.DataFrame(data)) == pairs
    for kind in (polars.UInt8, polars.Int8, polars.UInt16, polars.Int16, polars.UInt32, polars.Int32, polars.Int64):
        small = polars.DataFrame({"offset": [0, 100], "length": [100, 7]}, schema={"offset": kind, "length": kind})
        assert ranges(small) == [(0, 100), (100, 7)]
    # DuckDB makes a decimal of a sum.
    summed = duckdb.sql('select 65536::bigint as "offset", sum(n) as length from (values (1::bigint), (4095)) as t(n)')
    assert summed is not None
    assert ranges(summed) == [(65536, 4096)]
    for wrong in (
        polars.DataFrame({"offset": [0]}),
        polars.DataFrame({"offset": [0.0], "length": [1.0]}),
        polars.DataFrame({"offset": ["a"], "length": [1]}),
        polars.DataFrame({"offset": [-1], "length": [1]}),
        polars.DataFrame({"offset": [None], "length": [1]}, schema={"offset": polars.Int64, "length": polars.Int64}),
        "all of it",
        [(1,)],
        [("a", "b")],
        [5],
    ):
        with pytest.raises((TypeError, ValueError), match=r"range|column"):
            ranges(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pair"):
        ranges([(-1, 5)])


def test_a_repr_is_escaped_and_has_no_scripts() -> None:
    html = Table.from_rows([{"<b>": "<script>alert(1)</script>"}], {"<b>": "string"})._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<th><b></th>" not in html
    assert "prefers-color-scheme:dark" in html
