"""Discards: planned, looked at, applied; on files, in memory, and under every policy."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars
import pytest
from conftest import Run

import qcowkit
from qcowkit.errors import InvalidArgumentError, OutOfRangeError, ReadOnlyError

CLUSTER = 65536
MIB = 1 << 20
POLICIES = ["ignore", "unmap", "no-unref"]


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """32 MiB: data, compressed data, zeros, a snapshot of some of it, and a bitmap that records."""
    path = tmp_path / "used.qcow2"
    chance = random.Random(3)
    with qcowkit.create(path, 32 * MIB) as image:
        image.write(0, chance.randbytes(4 * MIB))
        image.create_snapshot("before")
        image.write(2 * MIB, chance.randbytes(4 * MIB))
        image.write_zeroes(8 * MIB, MIB)
        image.add_bitmap("changes")
    return path


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_planned_is_what_happens(policy: str, used: Path, qemu_img: Run) -> None:
    ranges = [(MIB, 4 * MIB), (7 * MIB + 100, 3 * MIB)]
    before = used.read_bytes()
    with qcowkit.open(used) as image:
        plan = image.plan_discard(ranges, policy)
        snapshot = image.view("before")
        kept = snapshot.read(0, 4 * MIB)
        snapshot.close()
    assert used.read_bytes() == before
    assert (plan.dry_run, plan.ranges, plan.requested_bytes) == (True, 2, 7 * MIB)
    assert sum(plan.pieces["length"]) == plan.requested_bytes
    for side, name in ((plan.before, "before"), (plan.after, "after")):
        for state in ("data", "compressed", "zero_retained", "zero", "unallocated"):
            assert sum(row.length for row in plan.pieces if getattr(row, name) == state) == getattr(side, state)
    with qcowkit.open(used, "scratch") as image:
        tried = image.apply(plan)
        assert image.check().ok
    assert used.read_bytes() == before
    with qcowkit.open(used, "r+") as image:
        done = image.apply(plan)
        assert done.dry_run is False
        assert (done.before, done.after, done.host_discards) == (plan.before, plan.after, plan.host_discards)
        assert (tried.before, tried.after) == (plan.before, plan.after)
        assert image.check().ok
        if policy != "ignore":
            assert image.read(MIB, 4 * MIB) == bytes(4 * MIB)
            # Clusters that the range covers in part keep what they hold.
            assert image.map(7 * MIB, 8 * MIB)[0].guest_offset == 7 * MIB
        image.write(MIB, b"after the discard")
        with image.view("before") as view:
            assert view.read(0, 4 * MIB) == kept
        assert image.bitmaps[0].problem is None
        # The next writer of the same handle keeps the bitmap right too.
        image.write(30 * MIB, b"x")
        dirty = image.dirty_ranges("changes")
    assert any(offset <= 30 * MIB < offset + length for offset, length in dirty)
    if policy != "ignore":
        assert any(offset <= 2 * MIB < offset + length for offset, length in dirty)
    qemu_img("check", str(used))


def test_a_plan_is_refused_when_the_ranges_have_changed(used: Path) -> None:
    with qcowkit.open(used, "r+") as image:
        plan = image.plan_discard([(0, 16 * MIB)])
        image.write(20 * MIB, b"elsewhere")
        other = image.plan_discard([(0, MIB)])
        image.write(10 * MIB, b"within")
        before = image.map()
        with pytest.raises(InvalidArgumentError, match="plan it again"):
            image.apply(plan)
        assert image.map() == before
        image.apply(other)
        with pytest.raises(InvalidArgumentError, match="plan it again"):
            image.apply(other)


def test_an_image_that_is_only_read_is_not_changed(used: Path) -> None:
    before = used.read_bytes()
    with qcowkit.open(used) as image:
        plan = image.plan_discard("all")
        with pytest.raises(ReadOnlyError):
            image.apply(plan)
        with pytest.raises(ReadOnlyError):
            image.discard_ranges("all")
    assert used.read_bytes() == before


def test_ranges_that_cannot_be(used: Path) -> None:
    with qcowkit.open(used, "r+") as image:
        before = image.map()
        wrong: list[Any] = [[(0, 33 * MIB)], [(33 * MIB, 0)], [(1 << 63, 1)], [(0, 1 << 63)]]
        for ranges in wrong:
            for call in (image.plan_discard, image.discard_ranges):
                with pytest.raises(OutOfRangeError):
                    call(ranges)
        odd: list[Any] = [[(-1, 5)], [(0,)], "some", 5, [None], polars.DataFrame({"a": [1]})]
        for ranges in odd:
            with pytest.raises((TypeError, ValueError)):
                image.plan_discard(ranges)
        with pytest.raises(InvalidArgumentError):
            image.plan_discard("all", "no such policy")
        with pytest.raises(InvalidArgumentError, match="undo"):
            image.apply(image.plan_discard([]), undo="undo")  # type: ignore[call-overload]
        assert image.map() == before
        empty = image.plan_discard([])
        assert (empty.ranges, len(empty.pieces)) == (0, 0)
        assert image.apply(empty).requested_bytes == 0


def test_ranges_from_tables_of_the_image_itself(used: Path) -> None:
    """What the map says is zero needs no clusters: the table goes straight back in."""
    with qcowkit.open(used, "r+", policy="no-unref") as image:
        image.discard(0, 8 * MIB)
        retained = image.map().to_polars().filter(polars.col("kind").cast(polars.String) == "zero_retained")
        assert len(retained) > 0
        report = image.discard_ranges(retained, "unmap")
        assert report.before.zero_retained == sum(retained["length"])
        assert "zero_retained" not in set(image.map()["kind"])
        assert image.check().ok


@pytest.mark.parametrize(
    "options", [{"version": 2}, {"extended_l2": True}, {"cluster_size": 4096}, {"refcount_bits": 1}]
)
def test_shapes(options: dict[str, Any], tmp_path: Path, qemu_img: Run) -> None:
    path = tmp_path / "shape.qcow2"
    chance = random.Random(9)
    with qcowkit.create(path, 8 * MIB, **options) as image:
        image.write(0, chance.randbytes(2 * MIB))
        plan = image.plan_discard([(5000, MIB), (MIB, MIB // 2)], "no-unref")
        report = image.apply(plan)
        assert (report.before, report.after) == (plan.before, plan.after)
        assert image.check().ok
        image.write(0, bytes(range(256)) * 16)
    qemu_img("check", str(path))


def test_a_data_file(tmp_path: Path, qemu_img: Run) -> None:
    path = tmp_path / "with-data.qcow2"
    with qcowkit.create(path, 8 * MIB, data_file="data.raw", data_file_raw=True) as image:
        image.write(0, b"x" * MIB)
    raw = (tmp_path / "data.raw").read_bytes()
    with qcowkit.open(path, backing="same-dir") as image:
        plan = image.plan_discard([(0, MIB)])
    assert (tmp_path / "data.raw").read_bytes() == raw
    with qcowkit.open(path, "r+", backing="same-dir") as image:
        image.apply(plan)
        assert image.read(0, MIB) == bytes(MIB)
        assert image.clusters(data_file=True)[0].kind in ("free", "beyond_last_used", "zero_retained")
    assert (tmp_path / "data.raw").read_bytes()[:MIB] == bytes(MIB)
    qemu_img("check", str(path))


def test_an_encrypted_image_needs_no_key_for_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "secret.qcow2"
    with qcowkit.create(path, 4 * MIB, key="sesame", encryption={"iter-time": 1}) as image:
        image.write(0, b"secret" * 20_000)
        plan = image.plan_discard("all")
        image.apply(plan)
        assert image.read(0, 6) == bytes(6)
        image.write(0, b"again")
        assert image.read(0, 5) == b"again"
    with qcowkit.open(path) as image:
        assert image.plan_discard("all").before.data == CLUSTER


def test_an_overlay_shows_zeros_not_what_lies_below(tmp_path: Path) -> None:
    with qcowkit.create(tmp_path / "base.qcow2", 4 * MIB) as image:
        image.write(0, b"below" * 50_000)
    path = tmp_path / "top.qcow2"
    with qcowkit.create(path, backing="base.qcow2", backing_format="qcow2") as image:
        image.write(0, b"above")
        image.apply(image.plan_discard([(0, 2 * CLUSTER)]))
        assert image.read(0, 2 * CLUSTER) == bytes(2 * CLUSTER)
        assert image.read(2 * CLUSTER, 5) == (b"below" * 50_000)[2 * CLUSTER :][:5]


def test_policies_reach_the_lab_and_the_image_alike() -> None:
    """The names are QEMU's, and each changes what it says."""
    trace = qcowkit.Trace.parse("write 0 4M\ndiscard 1M 1M\nwrite -z 3M 1M\n")
    zeros = qcowkit.Trace.from_table(
        qcowkit.Table.from_rows(
            [{"operation": "write", "offset": 0, "length": MIB, "detail": "zeros"}],
            {"operation": "string", "offset": "uint64", "length": "uint64", "detail": "string"},
        )
    )
    run: Callable[..., Any] = lambda **options: qcowkit.replay(trace, qcowkit.DiscardPolicy(**options)).end  # noqa: E731
    assert run(discard_no_unref=True).retained_bytes > run().retained_bytes
    assert run(discard="ignore").live_bytes > run().live_bytes
    assert run(pass_discard_request=False).host_discards < run().host_discards
    assert qcowkit.replay(zeros, qcowkit.DiscardPolicy(detect_zeroes="unmap")).end.live_bytes == 0
    assert qcowkit.replay(zeros).end.live_bytes == MIB


def test_traces_come_from_tables() -> None:
    frame = polars.DataFrame(
        {
            "operation": ["write", "discard", "flush", "mark", "read"],
            "offset": [0, 0, None, None, 5],
            "length": [MIB, CLUSTER, None, None, 5],
            "detail": [None, None, None, "night", None],
        }
    )
    for table in (frame, frame.to_arrow(), frame.with_columns(polars.col("operation").cast(polars.Categorical))):
        trace = qcowkit.Trace.from_table(table, name="mine")
        assert (len(trace), trace.end, trace.summary.ignored, trace.summary.marks) == (4, MIB, 1, 1)
        assert qcowkit.Trace.from_table(trace.table()).text() == trace.text()
        assert qcowkit.Trace.parse(trace.text()).text() == trace.text()
    assert qcowkit.compare(trace).trace.name == "mine"
    for wrong in (
        frame.drop("operation"),
        frame.drop("length"),
        frame.with_columns(polars.lit("explode").alias("operation")),
        frame.with_columns(polars.lit("often").alias("detail")),
        frame.with_columns(polars.lit(-1).alias("offset")),
        frame.with_columns(polars.lit(1.5).alias("offset")),
    ):
        with pytest.raises((TypeError, ValueError)):
            qcowkit.Trace.from_table(wrong)


def test_traces_and_replays_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="line 1"):
        qcowkit.Trace.parse("write nonsense")
    with pytest.raises(ValueError, match="no trace format"):
        qcowkit.Trace.parse("", "pdf")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        qcowkit.Trace.churn(size=5)
    with pytest.raises(InvalidArgumentError):
        qcowkit.Trace.churn(trim="sometimes")  # type: ignore[arg-type]
    trace = qcowkit.Trace.parse("write 0 1M")
    with pytest.raises(InvalidArgumentError, match="beyond the disk"):
        qcowkit.replay(trace, size=CLUSTER)
    with pytest.raises(InvalidArgumentError):
        qcowkit.compare(trace, [])
    with pytest.raises(InvalidArgumentError):
        qcowkit.compare(trace, "unmap")
    with pytest.raises((InvalidArgumentError, ValueError)):
        qcowkit.replay(trace, qcowkit.LabConfig(cluster_size=5))
    with pytest.raises((InvalidArgumentError, ValueError)):
        qcowkit.replay(trace, qcowkit.LabConfig(preallocation="some"))  # type: ignore[arg-type]
