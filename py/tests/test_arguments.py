"""Arguments: none is ignored. What does not go with a mode or another argument is refused, and nothing is made."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import qcowkit
from qcowkit import DiscardPolicy, LabConfig
from qcowkit.errors import InvalidArgumentError, UnsupportedError, WrongKeyError

MIB = 1 << 20
SWIFT: dict[str, str | int] = {"iter-time": 10}
TRACE = "write 0 1M\ndiscard 0 512k\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """16 MiB, of which 128 KiB and a half are data."""
    path = tmp_path / "small.qcow2"
    with qcowkit.create(path, 16 * MIB) as image:
        image.write(MIB, random.Random(1).randbytes(128 << 10))
        image.write(5 * MIB, b"x" * 4096)
    return path


@pytest.mark.parametrize("mode", ["r", "r+", "scratch"])
def test_a_key_that_nothing_needs_is_refused(mode: Any, small: Path) -> None:
    before = small.read_bytes()
    with pytest.raises(InvalidArgumentError, match="nothing that was opened is encrypted"):
        qcowkit.open(small, mode, key="abc")
    with pytest.raises(InvalidArgumentError, match="nothing that was opened is encrypted"):
        qcowkit.convert(small, small.with_name("new.qcow2"), source_key=b"abc")
    assert not small.with_name("new.qcow2").exists()
    assert small.read_bytes() == before
    # A function is asked where there is need.
    with qcowkit.open(small, mode, key=lambda layer: "abc") as image:
        assert image.read(5 * MIB, 1) == b"x"


def test_a_key_may_be_for_a_layer_below(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    with qcowkit.create(base, MIB, key="abc", encryption=SWIFT) as image:
        image.write(0, b"hidden")
    qcowkit.create(top, backing="base.qcow2", backing_format="qcow2", allow="deny").close()
    with qcowkit.open(top, backing="same-dir", key="abc") as image:
        assert image.read(0, 6) == b"hidden"
    with pytest.raises(InvalidArgumentError, match="nothing that was opened is encrypted"):
        qcowkit.open(top, key="abc")


def test_a_key_is_for_those_of_several_sources_that_need_one(small: Path, tmp_path: Path) -> None:
    secret, both = tmp_path / "secret.qcow2", tmp_path / "both.raw"
    with qcowkit.create(secret, MIB, key="abc", encryption=SWIFT) as image:
        image.write(0, b"hidden")
    qcowkit.convert([small, secret], both, source_key="abc", format="raw")
    assert both.read_bytes()[5 * MIB] == ord("x")
    assert both.read_bytes()[16 * MIB :][:6] == b"hidden"
    with pytest.raises(WrongKeyError):
        qcowkit.convert([small, secret], tmp_path / "none.raw", source_key="xyz", format="raw")


def test_raw_files_are_converted_too(small: Path, tmp_path: Path, same: Callable[[Path, bytes], None]) -> None:
    raw, new = tmp_path / "disk.raw", tmp_path / "new.qcow2"
    disk = random.Random(2).randbytes(100_000)
    raw.write_bytes(disk)
    report = qcowkit.convert(raw, new, source_format="raw", compress=True, cluster_size="16k")
    # Whole sectors.
    assert report["total_bytes"] == 100_352
    same(new, disk + bytes(352))
    qcowkit.convert([raw, raw], new, source_format="raw", overwrite=True)
    same(new, (disk + bytes(352)) * 2)
    target = io.BytesIO()
    qcowkit.convert(raw, target, source_format="raw")
    with qcowkit.open(target.getvalue()) as image:
        assert image.read(0, len(disk)) == disk
    with pytest.raises(FileNotFoundError, match=r"gone\.raw"):
        qcowkit.convert(tmp_path / "gone.raw", new, source_format="raw", overwrite=True)
    with pytest.raises(TypeError, match="a raw source is a path"):
        qcowkit.convert(disk, new, source_format="raw", overwrite=True)
    for more in ({"backing": "follow"}, {"source_key": "abc"}, {"snapshot": "s"}):
        with pytest.raises(InvalidArgumentError, match="go with qcow2 sources"):
            qcowkit.convert(raw, new, source_format="raw", overwrite=True, **more)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="source_format is"):
        qcowkit.convert(raw, new, source_format="vmdk", overwrite=True)  # type: ignore[arg-type]
    same(new, (disk + bytes(352)) * 2)
    assert raw.read_bytes() == disk


@pytest.mark.parametrize("how", [{}, {"compress": True}, {"format": "raw"}, {"sparse_size": 65536}], ids=str)
def test_a_conversion_counts_the_same_whatever_the_source_lies_in(how: dict[str, Any], small: Path) -> None:
    by_path = qcowkit.convert(small, small.with_name("one"), **how)
    by_bytes = qcowkit.convert(small.read_bytes(), small.with_name("two"), **how)
    assert by_bytes == by_path
    assert small.with_name("two").read_bytes() == small.with_name("one").read_bytes()


@pytest.mark.parametrize("how", [{"sparse_size": 0}, {"rate": MIB}, {"salvage": True}], ids=str)
def test_what_one_thread_cannot_do_is_refused(how: dict[str, Any], small: Path) -> None:
    with pytest.raises(UnsupportedError):
        qcowkit.convert(small.read_bytes(), small.with_name("new"), **how)
    assert not small.with_name("new").exists()


def test_rebase_hears_all_or_refuses(small: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qcowkit.create(top, backing="small.qcow2", backing_format="qcow2").close()
    before = top.read_bytes()
    with qcowkit.open(top, "r+", backing="follow") as image:
        for arguments, more in [
            ((None, "qcow2"), {}),
            ((None,), {"source": small}),
            (("small.qcow2",), {"unsafe": True}),
            (("small.qcow2",), {}),
            (("small.qcow2", "qcow2"), {"unsafe": True, "compress": True}),
            (("small.qcow2", "qcow2"), {"unsafe": True, "source": small}),
        ]:
            with pytest.raises(InvalidArgumentError):
                image.rebase(*arguments, **more)  # type: ignore[arg-type]
    assert top.read_bytes() == before


def test_apply_hears_all_or_refuses(small: Path) -> None:
    with qcowkit.open(small, "scratch") as image:
        discard, repair = image.plan_discard("all"), image.plan_repair()
        with pytest.raises(InvalidArgumentError, match="punch goes with repairs"):
            image.apply(discard, punch=False)  # type: ignore[call-overload]
        with pytest.raises(InvalidArgumentError, match="undo file goes with repairs"):
            image.apply(discard, undo="undo")  # type: ignore[call-overload]
        with pytest.raises(InvalidArgumentError, match="progress goes with discards"):
            image.apply(repair, progress=print)  # type: ignore[call-overload]
        assert image.read(5 * MIB, 1) == b"x"


def test_a_plan_goes_by_the_policy_of_the_image(small: Path) -> None:
    with qcowkit.open(small) as image:
        assert image.policy == DiscardPolicy()
        assert image.plan_discard("all").policy == DiscardPolicy()
    policy = DiscardPolicy(discard_no_unref=True, pass_discard_other=True, retained_op="none", allocation="near")
    with qcowkit.open(small, policy=policy) as image:
        plan = image.plan_discard("all")
        assert image.policy == plan.policy == policy
        assert plan.after.zero_retained == plan.before.data > 0
        assert image.plan_discard("all", "unmap").after.zero_retained == 0
    with qcowkit.open(small, "scratch", policy="no-unref") as image:
        done = image.discard_ranges("all")
        assert done.after.zero_retained == done.before.data > 0
    with qcowkit.open(small, "scratch", options={"unref": "retain-qemu"}) as image:
        assert image.policy == DiscardPolicy(discard_no_unref=True)
        assert image.apply(image.plan_discard("all")).after.zero_retained > 0


@pytest.mark.parametrize(
    "wrong",
    [{"discard": "nonsense"}, {"detect_zeroes": True}, {"discard_no_unref": "no"}, {"pass_discard_other": 1}],
    ids=str,
)
def test_a_policy_has_no_other_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        DiscardPolicy(**wrong)


def test_an_image_that_exists_is_replayed_on_as_it_is(small: Path) -> None:
    trace = qcowkit.Trace.parse(TRACE)
    with qcowkit.open(small) as image:
        for config in (LabConfig(cluster_size=MIB), LabConfig(extended_l2=True), LabConfig(preallocation="full")):
            with pytest.raises(InvalidArgumentError, match="an image that exists"):
                qcowkit.replay(trace, config, image=image)
            with pytest.raises(InvalidArgumentError, match="an image that exists"):
                qcowkit.compare(trace, {"mine": config}, image=image)
        assert qcowkit.replay(trace, LabConfig(policy="no-unref"), image=image).end.retained_bytes == 524_288
    with pytest.raises(InvalidArgumentError, match="preallocation is one of"):
        LabConfig(preallocation="some")  # type: ignore[arg-type]


def test_measure_hears_all_or_refuses(small: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="backing is 'deny' or 'follow'"):
        qcowkit.measure(small, backing="same-dir")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="backing goes with a source"):
        qcowkit.measure(size=MIB, backing="follow")


def test_files_of_text_and_names_with_nul_are_told_as_such(small: Path) -> None:
    with small.open("r") as text, pytest.raises(TypeError, match="binary mode"):
        qcowkit.open(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="binary mode"):
        qcowkit.probe(io.StringIO("QFI"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embedded null byte"):
        qcowkit.open("small\0.qcow2")


@pytest.mark.parametrize(
    "opens",
    [
        qcowkit.open,
        lambda path: qcowkit.open(path, "r+"),
        lambda path: qcowkit.create(path, "1M"),
        lambda path: qcowkit.create(path, "1M", overwrite=True),
        qcowkit.probe,
        qcowkit.check,
        qcowkit.audit,
        qcowkit.plan_repair,
        qcowkit.measure,
        lambda path: qcowkit.convert(path, "new.qcow2"),
    ],
)
def test_a_directory_is_refused_as_python_refuses_it(opens: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        opens(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_what_the_system_refuses_further_down_says_where(tmp_path: Path, qemu_img: Run) -> None:
    qemu_img("create", "-u", "-f", "qcow2", "-b", "gone.qcow2", "-F", "qcow2", "top.qcow2", "1M")
    with pytest.raises(FileNotFoundError) as caught:
        qcowkit.open(tmp_path / "top.qcow2", backing="follow")
    assert str(caught.value.filename).endswith("gone.qcow2")
    assert caught.value.__notes__ == ["it was about the backing file, 1 below the image"]


def test_methods_of_a_closed_image_say_so(small: Path) -> None:
    image = qcowkit.open(small, "scratch")
    image.close()
    for call in (image.disk, image.commit, lambda: image.policy, image.partitions, lambda: image.read(0, 1)):
        with pytest.raises(ValueError, match="the image is closed"):
            call()
