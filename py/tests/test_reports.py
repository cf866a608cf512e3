"""Reports: equal to what the command line prints, typed, and fit for notebooks."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import qcowkit
from qcowkit.errors import DeniedError, InvalidArgumentError, NotQcow2Error
from qcowkit.reports import Report

#: Images of many shapes: options, and what is done to them.
SHAPES: dict[str, tuple[str, list[str]]] = {
    "plain": ("", ["write 0 1M", "write 5M 3M"]),
    "small clusters": ("cluster_size=4k", ["write 0 1M", "write 1M 64k", "discard 100k 200k"]),
    "large clusters": ("cluster_size=2M", ["write 0 4M"]),
    "version 2": ("compat=0.10", ["write 0 1M", "discard 0 512k"]),
    "subclusters": ("extended_l2=on,cluster_size=128k", ["write 4k 8k", "write -z 64k 64k"]),
    "compressed": ("compression_type=zstd", ["write -c 0 64k", "write -c 64k 64k"]),
    "refcounts of a bit": ("refcount_bits=1", ["write 0 1M"]),
    "lazy": ("lazy_refcounts=on", ["write 0 1M"]),
    "gaps": ("", ["write 0 8M", "discard 1M 1M", "discard 3M 64k", "write -z -u 5M 1M"]),
    "data file": ("data_file=data.raw,data_file_raw=on", ["write 0 1M"]),
    "empty": ("", []),
}


@pytest.fixture(params=SHAPES)
def shaped(request: pytest.FixtureRequest, qemu_img: Run, qemu_io: Run, tmp_path: Path) -> Path:
    options, commands = SHAPES[request.param]
    path = tmp_path / "shaped.qcow2"
    qemu_img("create", "-f", "qcow2", *(["-o", options] if options else []), str(path), "32M")
    if commands:
        qemu_io(str(path), *commands)
    return path


@pytest.fixture
def snapshots(qemu_img: Run, qemu_io: Run, tmp_path: Path) -> Path:
    """An image with two snapshots, a bitmap and a backing file."""
    path = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", str(tmp_path / "base.qcow2"), "32M")
    qemu_io(str(tmp_path / "base.qcow2"), "write 0 4M")
    qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", str(path))
    qemu_io(str(path), "write 1M 1M")
    qemu_img("snapshot", "-c", "one", str(path))
    qemu_io(str(path), "write 8M 1M", "discard 1M 512k")
    qemu_img("snapshot", "-c", "two", str(path))
    qemu_img("bitmap", "--add", str(path), "backup")
    qemu_io(str(path), "write 20M 1M", "write -z 8M 512k")
    return path


def printed(program: Run, *arguments: str) -> Any:
    return json.loads(program(*arguments, "--output=json"))


def test_reports_are_what_the_command_line_prints(shaped: Path, qcowkit_program: Run) -> None:
    name = str(shaped)
    with qcowkit.open(shaped, backing="same-dir") as image:
        assert image.info().to_dict() == printed(qcowkit_program, "info", name)
        analysis = printed(qcowkit_program, "analyze", "--backing=same-dir", name)
        assert image.analyze().to_dict() == analysis
        assert image.space().to_dict() == analysis["ledger"]
        assert image.layout().to_dict() == analysis["layout"]
        assert image.check().to_dict() == printed(qcowkit_program, "check", name)
    assert qcowkit.check(shaped).to_dict() == printed(qcowkit_program, "check", name)


def test_plans_and_deltas_are_what_the_command_line_prints(snapshots: Path, qcowkit_program: Run) -> None:
    name = str(snapshots)
    ask = functools.partial(printed, qcowkit_program)
    with qcowkit.open(snapshots, backing="same-dir") as image:
        plan = image.plan_discard([(0, 3 << 20), (20 << 20, 1 << 20)], "no-unref")
        options = ["-o", ",".join(f"{key}={value}" for key, value in plan.policy.options().items())]
        dry = ask("discard", "-n", *options, name, "0+3M", "20M+1M")
        assert plan.to_dict() == dry
        assert image.plan_repair().to_dict() == ask("check", "--dry-run", "-r", "all", name)
        follow = "--backing=same-dir"
        bitmap = image.delta(bitmap="backup")
        assert bitmap.to_dict() == ask("delta", follow, "--bitmap", "backup", name)
        assert image.delta(snapshot="one").to_dict() == ask("delta", follow, "--from-snapshot", "one", name)
        two = image.delta(snapshot="one", to_snapshot="two")
        assert two.to_dict() == ask("delta", follow, "--from-snapshot", "one", "--to-snapshot", "two", name)
        base = image.delta(base=1, read=True, cluster_size=4096)
        assert base.to_dict() == ask("delta", follow, "--base=1", "--read", "--cluster-size", "4k", name)
    base_name = str(snapshots.parent / "base.qcow2")
    with qcowkit.open(snapshots, backing="same-dir") as image, qcowkit.open(base_name) as old:
        assert image.delta(image=old).to_dict() == ask("delta", follow, base_name, name)
    assert bitmap.totals.dirty_data == 1 << 20
    assert bitmap.granularity == CLUSTER


CLUSTER = 65536


def test_audits_are_what_the_command_line_prints(shaped: Path, qcowkit_program: Run, tmp_path: Path) -> None:

    def printed_audit(*arguments: str) -> Any:
        return json.loads(loose(qcowkit_program, *arguments))

    assert qcowkit.audit(shaped).to_dict() == printed_audit("audit", "--output=json", str(shaped))
    deep = qcowkit.audit(shaped, deep=True)
    assert deep.to_dict() == printed_audit("audit", "--deep", "--output=json", str(shaped))
    assert deep.scope == "deep"
    broken = tmp_path / "broken"
    broken.write_bytes(b"QFI\xfb" + bytes(200))
    assert qcowkit.audit(broken).to_dict() == printed_audit("audit", "--output=json", str(broken))
    assert qcowkit.audit(b"conectix").verdict == "danger"
    assert qcowkit.audit(io.BytesIO(shaped.read_bytes())).verdict == qcowkit.audit(shaped).verdict
    assert qcowkit.audit(shaped, max_virtual_size=1 << 20).verdict == "danger"


def loose(program: Run, *arguments: str) -> str:
    """What is printed, whatever the exit code: verdicts have codes of their own."""
    import subprocess

    try:
        return program(*arguments)
    except subprocess.CalledProcessError as error:
        return str(error.stdout)


def test_measures_are_what_the_command_line_prints(shaped: Path, qcowkit_program: Run, qemu_img: Run) -> None:
    name = str(shaped)
    measured = qcowkit.measure(shaped, cluster_size="4k", backing="follow")
    assert measured.to_dict() == printed(qcowkit_program, "measure", "-O", "qcow2", "-o", "cluster_size=4k", name)
    of_size = qcowkit.measure(size=10 << 30, extended_l2=True)
    assert of_size.to_dict() == json.loads(
        qemu_img("measure", "--output=json", "--size", "10G", "-O", "qcow2", "-o", "extended_l2=on")
    )
    for wrong in ({}, {"source": name, "size": 5}, {"size": 1 << 20, "no_such_option": 1}, {"size": -1}):
        with pytest.raises(InvalidArgumentError):
            qcowkit.measure(**wrong)


def test_replays_are_what_the_command_line_prints(tmp_path: Path, qcowkit_program: Run) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(qcowkit.Trace.churn(size=64 << 20, operations=2000, mark_every=500).text())
    trace = qcowkit.Trace.load(path)
    name = str(path)
    ask = functools.partial(printed, qcowkit_program, "replay", name)
    assert qcowkit.compare(trace).to_dict() == ask()
    assert qcowkit.compare(trace, advise=True).to_dict() == ask("--advise")
    assert qcowkit.replay(trace, "no-unref").to_dict() == ask("--policy", "no-unref")
    config = qcowkit.LabConfig(
        policy=qcowkit.DiscardPolicy(discard_no_unref=True, detect_zeroes="unmap", allocation="near"),
        cluster_size=128 << 10,
        extended_l2=True,
        preallocation="metadata",
        quarantine=1 << 20,
    )
    options = "no-unref,detect-zeroes=unmap,allocator=near,cluster_size=128k,extended_l2=on,preallocation=metadata"
    run = qcowkit.compare(trace, {"mine": config}, size=128 << 20, samples=7)
    assert run.to_dict() == ask("--policy", f"{options},quarantine=1M,name=mine", "--size", "128M", "--samples", "7")


def test_a_replay_begins_with_an_image(shaped: Path, qcowkit_program: Run, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("write 0 1M\ndiscard 4M 1M\nflush\n")
    before = shaped.read_bytes()
    with qcowkit.open(shaped) as image:
        found = qcowkit.compare(qcowkit.Trace.load(path), ["unmap"], image=image)
    expected = printed(qcowkit_program, "replay", "-p", "unmap", "--image", str(shaped), str(path))
    assert found.to_dict() == expected
    assert shaped.read_bytes() == before


def test_attributes_have_their_values(shaped: Path) -> None:
    with qcowkit.open(shaped, backing="same-dir") as image:
        analysis, check, info = image.analyze(), image.check(), image.info()
        assert image.space() == analysis.ledger
        assert image.layout() == analysis.layout
    data = analysis.to_dict()
    assert analysis.ledger.file_length == data["ledger"]["file_length"] == shaped.stat().st_size
    assert sum(line.bytes for line in analysis.ledger.classes) == analysis.ledger.file_length
    assert analysis.ledger["header"].bytes == analysis.cluster_size
    classes = [line["bytes"] for line in data["ledger"]["classes"]]
    assert analysis.ledger.table()["bytes"].to_list() == classes
    with pytest.raises(KeyError):
        analysis.ledger["nothing"]
    assert analysis.reclaim.compact.file_length == data["reclaim"]["compact"]["file_length"]
    assert [bucket.from_bytes for bucket in analysis.layout.free.histogram] == [
        bucket["from"] for bucket in data["layout"]["free"]["histogram"]
    ]
    assert check.ok
    assert check.total_clusters == check["total-clusters"]
    assert (info.virtual_size, info.cluster_size) == (32 << 20, analysis.cluster_size)
    assert info.specific["compat"] == info["format-specific"]["data"]["compat"]
    # What is handed out is a copy.
    data["ledger"].clear()
    assert analysis.to_dict()["ledger"]


def every_field(value: Any) -> Iterator[tuple[str, Any]]:
    """Fields of dataclasses, those within too, that should not be left at what was never given."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        yield f"{type(value).__name__}.{field.name}", inner
        for one in inner if isinstance(inner, tuple) else (inner,):
            if dataclasses.is_dataclass(one) and not isinstance(one, type):
                yield from every_field(one)


def test_every_field_is_of_its_type(snapshots: Path) -> None:
    """Typed attributes are what their annotations say: nothing stays a dictionary, nothing is left out."""
    trace = qcowkit.Trace.churn(size=64 << 20, operations=500, mark_every=100)
    with qcowkit.open(snapshots, backing="same-dir") as image:
        found: list[Any] = [
            image.info(), image.analyze(scan_zeroes=True), image.check(), image.plan_discard("all"),
            image.delta(bitmap="backup", read=True), qcowkit.audit(snapshots, deep=True), qcowkit.measure(size=1 << 30),
            qcowkit.compare(trace, advise=True), trace.summary,
        ]  # fmt: skip
    for report in found:
        assert isinstance(report, Report)
        for name, value in every_field(report):
            if not name.endswith("._data"):
                assert not isinstance(value, (dict, list)) or name.endswith("._ranges"), name


class Tags(HTMLParser):
    """Refuses what must not be in a report, and tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "link", "img")
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_notebooks_are_shown_html(snapshots: Path, broken: Path) -> None:
    trace = qcowkit.Trace.churn(size=64 << 20, operations=500, mark_every=100)
    comparison = qcowkit.compare(trace, advise=True)
    with qcowkit.open(snapshots, backing="same-dir") as image:
        analysis = image.analyze()
        shown: list[Any] = [
            image, image.info(), analysis, analysis.ledger, analysis.layout, image.check(), qcowkit.check(broken),
            qcowkit.plan_repair(broken), image.plan_repair(), image.plan_discard("all"), image.delta(snapshot="one"),
            image.map(), image.clusters(), qcowkit.audit(broken), qcowkit.measure(size=1 << 30), trace, comparison,
            comparison.runs[0],
        ]  # fmt: skip
        pages = [value._repr_html_() for value in shown]
    for value, html in zip(shown, pages, strict=True):
        parser = Tags()
        parser.feed(html)
        assert parser.open == [], type(value)
        assert "prefers-color-scheme:dark" in html
        assert "color-scheme:light dark" in html


def test_names_in_html_are_escaped(qemu_img: Run, tmp_path: Path) -> None:
    path = tmp_path / "<b onclick=alert(1)>.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "<script>alert(1)</script>", "-F", "raw", str(path), "1M")
    with qcowkit.open(path, "r+") as image:
        image.create_snapshot("<i>&")
    with qcowkit.open(path) as image:
        pages = [image._repr_html_(), image.info()._repr_html_(), qcowkit.audit(path)._repr_html_()]
        pages.append(image.plan_discard([])._repr_html_())
    for html in pages:
        assert "<script" not in html
        assert "<b onclick" not in html
        assert "<i>&" not in html


def test_plots_draw_on_the_axes_that_are_given(snapshots: Path, broken: Path) -> None:
    from matplotlib.figure import Figure

    comparison = qcowkit.compare(qcowkit.Trace.churn(size=64 << 20, operations=500))
    with qcowkit.open(snapshots, backing="same-dir") as image:
        analysis = image.analyze()
        reports: list[Callable[..., Any]] = [
            analysis.plot, analysis.ledger.plot, analysis.layout.plot, image.check().plot, qcowkit.check(broken).plot,
            image.plan_discard("all").plot, image.delta(snapshot="one").plot, image.info().plot,
            image.plan_repair().plot, qcowkit.plan_repair(broken).plot,
        ]  # fmt: skip
        runs = image.runs()
    for plot in reports:
        axes = Figure().add_subplot()
        assert plot(axes) is axes
        assert axes.get_title()
        assert plot().get_title() == axes.get_title()
    axes = qcowkit.plots.disk_map(runs)
    assert len(axes.collections) == 1
    lines = comparison.plot("host_bytes").get_lines()
    assert [line.get_label() for line in lines] == ["ignore", "unmap", "no-unref"]
    assert comparison.plot("file_ppm").get_ylabel() == "%"
    assert len(comparison.runs[0].plot().get_lines()) == 1
    with pytest.raises(KeyError):
        comparison.plot("no_such_metric")


def test_progress_is_told_and_ends_calls(snapshots: Path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    trace = qcowkit.Trace.churn(size=256 << 20, operations=20_000)
    with qcowkit.open(snapshots, backing="same-dir") as image:
        calls: list[Callable[..., Any]] = [
            image.map, image.runs, image.clusters, image.gaps, image.refcounts, image.analyze, image.check,
            image.plan_repair, lambda progress: image.plan_discard("all", progress=progress),
            lambda progress: image.delta(snapshot="one", progress=progress),
            lambda progress: qcowkit.audit(snapshots, deep=True, progress=progress),
            lambda progress: qcowkit.check(snapshots, progress=progress),
            lambda progress: qcowkit.compare(trace, progress=progress),
        ]  # fmt: skip
        for call in calls:
            told: list[tuple[int, int]] = []
            call(progress=lambda done, total, told=told: told.append((done, total)))
            assert told, call
            assert told[-1][0] == told[-1][1]
            assert told == sorted(told)
            with pytest.raises(Stop):
                call(progress=stop)
            assert image.size


def test_tqdm_is_told(snapshots: Path) -> None:
    import tqdm

    with qcowkit.open(snapshots) as image, tqdm.tqdm(file=io.StringIO()) as bar:
        image.analyze(progress=bar)
        assert (bar.n, bar.total) == (10_000, 10_000)


def compare_for_long(trace: qcowkit.Trace) -> None:
    for _ in range(100):
        qcowkit.compare(trace)


def test_ctrl_c_ends_a_replay() -> None:
    import _thread

    trace = qcowkit.Trace.churn(size=8 << 30, operations=150_000)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compare_for_long(trace)
    timer.join()
    assert time.monotonic() - start < 60


@pytest.fixture
def broken(qemu_img: Run, qemu_io: Run, tmp_path: Path) -> Path:
    """An image with a leaked cluster and one whose refcount is too low."""
    path = tmp_path / "broken.qcow2"
    qemu_img("create", "-f", "qcow2", str(path), "8M")
    qemu_io(str(path), "write 0 1M")
    with qcowkit.open(path) as image:
        data = image.runs()[0].host_offset // CLUSTER
        block = next(row.host_offset for row in image.clusters() if row.structure == "refcount_block")
        end = image.file_size // CLUSTER
    with path.open("r+b") as file:
        file.seek(block + 2 * data)
        file.write(struct.pack(">H", 0))
        file.seek(block + 2 * (end + 3))
        file.write(struct.pack(">H", 1))
        file.truncate((end + 4) * CLUSTER)
    return path


def test_findings_are_a_table(broken: Path, qcowkit_program: Run) -> None:
    report = qcowkit.check(broken)
    assert (report.ok, report.corruptions, report.leaks) == (False, 2, 1)
    assert report.to_dict() == json.loads(loose(qcowkit_program, "check", "--output=json", str(broken)))
    assert {row.kind for row in report.findings} == {"refcount_too_low", "refcount_too_high", "copied_flag"}
    assert all(isinstance(row.message, str) for row in report.findings)


def test_a_repair_is_planned_applied_and_undone(broken: Path, qemu_img: Run, tmp_path: Path) -> None:
    before = broken.read_bytes()
    plan = qcowkit.plan_repair(broken)
    assert broken.read_bytes() == before
    assert (plan.is_empty, plan.corruptions_fixed, plan.leaks_fixed) == (False, 2, 1)
    assert plan.before == qcowkit.check(broken)
    assert plan.after.ok
    assert {row.action for row in plan.findings} == {"raise_refcount", "lower_refcount"}
    undo = tmp_path / "undo"
    report = qcowkit.apply_repair(broken, plan, undo=undo)
    assert (report.ok, report.corruptions_fixed, report.leaks_fixed) == (True, 2, 1)
    qemu_img("check", str(broken))
    with pytest.raises(FileExistsError):
        qcowkit.apply_repair(broken, plan, undo=undo)
    qcowkit.undo_repair(broken, undo)
    assert broken.read_bytes() == before
    with pytest.raises(InvalidArgumentError):
        qcowkit.undo_repair(broken, broken)


def test_a_repair_of_an_open_image(broken: Path, qemu_img: Run, tmp_path: Path) -> None:
    before = broken.read_bytes()
    with qcowkit.open(broken) as image:
        leaks = image.plan_repair("leaks")
        assert (leaks.level, leaks.leaks_fixed, leaks.corruptions_fixed) == ("leaks", 1, 0)
        with pytest.raises(qcowkit.errors.ReadOnlyError):
            image.apply(leaks)
    with qcowkit.open(broken, "scratch") as image:
        assert image.apply(image.plan_repair()).ok
        image.write(0, b"after the repair")
        assert image.check().ok
    assert broken.read_bytes() == before
    undo = tmp_path / "undo"
    with qcowkit.open(broken, "r+") as image:
        assert image.apply(image.plan_repair(), undo=undo).ok
        assert image.check().ok
        image.undo_repair(undo)
        assert not image.check().ok
        image.apply(image.plan_repair())
        image.write(4 << 20, b"x" * CLUSTER)
        assert image.read(4 << 20, CLUSTER) == b"x" * CLUSTER
    qemu_img("check", str(broken))


def test_levels_and_sources_that_do_not_exist(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'leaks' or 'all'"):
        qcowkit.plan_repair(broken, "some")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        qcowkit.check(tmp_path / "gone")
    with pytest.raises(NotQcow2Error):
        qcowkit.check(b"nothing")
    with pytest.raises(InvalidArgumentError):
        qcowkit.apply_repair(broken.read_bytes(), qcowkit.plan_repair(broken))
    with pytest.raises(TypeError):
        qcowkit.audit(5)  # type: ignore[arg-type]


def test_deltas_say_what_is_missing(snapshots: Path) -> None:
    with qcowkit.open(snapshots) as image:
        wrong: list[dict[str, Any]] = [{}, {"bitmap": "backup", "base": 1}, {"bitmap": "backup", "to_snapshot": "two"}]
        for arguments in wrong:
            with pytest.raises(InvalidArgumentError):
                image.delta(**arguments)
        wrong = [{"bitmap": "gone"}, {"snapshot": "gone"}, {"base": 7}, {"snapshot": "one", "cluster_size": 5}]
        for arguments in wrong:
            with pytest.raises((InvalidArgumentError, qcowkit.QcowError)):
                image.delta(**arguments)
        with pytest.raises(DeniedError):
            image.map()
        assert "unallocated" in set(image.map(chain=False)["kind"])
    with qcowkit.open(snapshots, backing="same-dir") as image:
        assert set(image.map()["depth"]) == {0, 1}


@pytest.mark.parametrize("shaped", [name for name in SHAPES if name != "data file"], indirect=True)
def test_reports_of_what_is_no_file(shaped: Path) -> None:
    with qcowkit.open(shaped) as image, qcowkit.open(shaped.read_bytes()) as memory:
        ledger = memory.analyze().ledger
        assert [line.bytes for line in ledger.classes] == [line.bytes for line in image.space().classes]
        assert memory.check().to_dict()["qcowkit"] == image.check().to_dict()["qcowkit"]
        assert memory.map() == image.map()
        assert memory.clusters() == image.clusters()
        plan = memory.plan_discard("all")
        assert plan.after == image.plan_discard("all").after
        assert plan.host_bytes_before is None


def test_measures_are_of_paths(shaped: Path) -> None:
    for source in (shaped.read_bytes(), io.BytesIO(shaped.read_bytes())):
        with pytest.raises(TypeError, match="save_as"):
            qcowkit.measure(source)  # type: ignore[arg-type]


def test_audits_and_checks_are_of_every_source(shaped: Path) -> None:
    content = shaped.read_bytes()
    for source in (content, memoryview(content), io.BytesIO(content)):
        assert qcowkit.audit(source, deep=True).verdict == qcowkit.audit(shaped, deep=True).verdict
        assert qcowkit.check(source).to_dict()["qcowkit"] == qcowkit.check(shaped).to_dict()["qcowkit"]
