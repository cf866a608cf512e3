"""What reports and tables become in another process, where Dask and others work on them, and as copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import qcowkit

CSV = "operation,offset,length,detail\nwrite,0,1048576,\nread,0,4096,\ndiscard,0,524288,\nmark,,,one\n"


def trace() -> qcowkit.Trace:
    return qcowkit.Trace.parse(CSV, name="mine")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[qcowkit.Image]:
    with qcowkit.create(tmp_path / "disk.qcow2", "16M") as image:
        image.write(0, bytes(range(256)) * 4096)
        image.create_snapshot("before")
        image.write(5 << 20, b"more")
        image.write_zeroes(1 << 19, 1 << 18)
        yield image


TABLES: list[Callable[[qcowkit.Image], qcowkit.Table]] = [
    lambda image: image.map(),
    lambda image: image.map()[1:],
    lambda image: image.runs(),
    lambda image: image.clusters(),
    lambda image: image.gaps(),
    lambda image: image.refcounts(),
    lambda image: image.check().findings,
    lambda image: image.plan_discard("all").pieces,
    lambda image: image.delta(snapshot="before").ranges,
    lambda image: trace().table(),
    lambda image: qcowkit.compare(trace()).timeline,
]
REPORTS: list[Callable[[qcowkit.Image], Any]] = [
    lambda image: image.info(),
    lambda image: image.analyze(),
    lambda image: image.space(),
    lambda image: image.layout(),
    lambda image: image.check(),
    lambda image: image.delta(snapshot="before"),
    lambda image: image.plan_discard("all"),
    lambda image: image.snapshots[0],
    lambda image: qcowkit.audit(image.path or ""),
    lambda image: qcowkit.measure(size=1 << 30),
    lambda image: qcowkit.replay(trace()),
    lambda image: qcowkit.compare(trace(), advise=True),
    lambda image: trace().summary,
]


def copies(value: Any) -> list[Any]:
    return [pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)]


@pytest.mark.parametrize("make", TABLES)
def test_a_copy_of_a_table_is_equal(make: Callable[[qcowkit.Image], qcowkit.Table], image: qcowkit.Image) -> None:
    table = make(image)
    for same in copies(table):
        assert same == table
        assert same.types == table.types


@pytest.mark.parametrize("make", REPORTS)
def test_a_copy_of_a_report_is_equal(make: Callable[[qcowkit.Image], Any], image: qcowkit.Image) -> None:
    report = make(image)
    for same in copies(report):
        assert type(same) is type(report)
        assert same == report
        assert same.to_dict() == report.to_dict()


def test_a_copy_of_a_trace_is_equal() -> None:
    for same in copies(trace()):
        assert (same.name, same.table()) == ("mine", trace().table())
        assert same.summary.to_dict() == trace().summary.to_dict()
        assert same.summary.ignored == trace().summary.ignored > 0


def test_a_plan_of_discards_is_applied_after_a_journey(image: qcowkit.Image) -> None:
    plan = pickle.loads(pickle.dumps(image.plan_discard([(5 << 20, 1 << 20)], "no-unref")))
    done = image.apply(plan)
    assert done.after == plan.after
    assert done.after.zero_retained > 0


def test_what_belongs_to_this_process_says_so(image: qcowkit.Image) -> None:
    plan = image.plan_repair()
    assert copy.deepcopy(plan) is copy.copy(plan) is plan
    with pytest.raises(TypeError, match="stays in the process"):
        pickle.dumps(plan)
    for other in (image, image.disk()):
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(other)
