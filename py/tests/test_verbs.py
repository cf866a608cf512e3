"""Making, converting and reshaping images, beside qemu-img."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tqdm import tqdm

import qcowkit
from qcowkit.errors import InvalidArgumentError, LimitError, UnsupportedError

Same = Callable[[Path, bytes], None]
Info = Callable[[Path], dict[str, Any]]
SIZE = 4 << 20


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An image of 4 MiB: noise, zeros, text."""
    path = tmp_path / "source.qcow2"
    with qcowkit.create(path, SIZE) as image:
        image.write(0, contents()[: 3 << 20])
    return path


def contents() -> bytes:
    return (noise(1 << 20) + bytes(1 << 20) + b"text " * (1 << 18)).ljust(SIZE, b"\0")[: 3 << 20].ljust(SIZE, b"\0")


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"version": 2}, "compat=0.10"),
    ({"cluster_size": "4k"}, "cluster_size=4k"),
    ({"cluster_size": 2 << 20, "refcount_bits": 8}, "cluster_size=2M,refcount_bits=8"),
    ({"extended_l2": True, "compression": "zstd"}, "extended_l2=on,compression_type=zstd"),
    ({"lazy_refcounts": True, "preallocation": "falloc"}, "lazy_refcounts=on,preallocation=falloc"),
]


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_a_new_image_is_as_qemu_makes_it(
    shape: dict[str, Any], options: str, qemu_img: Run, qemu_info: Info, tmp_path: Path
) -> None:
    path, other = tmp_path / "disk.qcow2", tmp_path / "qemu.qcow2"
    with qcowkit.create(path, "10M", **shape) as image:
        assert (image.size, image.mode) == (10 << 20, "r+")
    qemu_img("create", "-f", "qcow2", *(["-o", options] if options else []), str(other), "10M")
    qemu_img("check", str(path))
    ours, theirs = qemu_info(path), qemu_info(other)
    for what in ("virtual-size", "cluster-size", "format-specific"):
        assert ours[what] == theirs[what]


def test_create_refuses_before_it_touches_anything(tmp_path: Path, disk: Path) -> None:
    before = disk.read_bytes()
    wrong: list[dict[str, Any]] = [
        {"cluster_size": 1000},
        {"cluster_size": "big"},
        {"refcount_bits": 3},
        {"version": 5},
        {"version": 2, "extended_l2": True},
        {"data_file_raw": True},
        {"backing": "gone.qcow2"},
        {"backing_format": "qcow2"},
        {"preallocation": "some"},
        {"compression": "lzma"},
        {"encryption": {"hash-alg": "sha1"}},
        {"key": "k", "encryption": {"cipher-alg": "rot13"}},
        {"options": {"what": "ever"}},
        {"policy": "gone"},
    ]
    for target in (disk, tmp_path / "new.qcow2"):
        for options in wrong:
            with pytest.raises(InvalidArgumentError):
                qcowkit.create(target, "1M", overwrite=True, **options)
        for size in (-1, 2**63, "much", "1.5.5G"):
            with pytest.raises(ValueError, match=r"size|range|bytes|large|number|beyond"):
                qcowkit.create(target, size, overwrite=True)
        with pytest.raises(InvalidArgumentError, match="size"):
            qcowkit.create(target, overwrite=True)
        with pytest.raises(FileNotFoundError):
            qcowkit.create(target, overwrite=True, backing="gone.qcow2", backing_format="qcow2")
        with pytest.raises(TypeError):
            qcowkit.create(target, 1, clusters=5)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            qcowkit.create(target, 1, key=5)  # type: ignore[arg-type]
    with pytest.raises(FileExistsError) as caught:
        qcowkit.create(disk, "1M")
    assert caught.value.filename == str(disk)
    assert disk.read_bytes() == before
    assert not (tmp_path / "new.qcow2").exists()
    with pytest.raises(InvalidArgumentError, match="bytes"):
        qcowkit.create(b"", "1M")  # type: ignore[arg-type]


def test_an_image_in_use_is_not_made_anew(disk: Path) -> None:
    with qcowkit.open(disk), pytest.raises(qcowkit.errors.LockedError):
        qcowkit.create(disk, "1M", overwrite=True)
    with qcowkit.open(disk) as image:
        assert image.size == 64 << 20


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mode", ["r", "scratch"])
def test_convert(mode: Any, compress: bool, source: Path, tmp_path: Path, same: Same, qemu_img: Run) -> None:
    target = tmp_path / "target.qcow2"
    seen: list[tuple[int, int]] = []
    with qcowkit.open(source, mode) as image:
        told = image.convert(
            target, compress=compress, cluster_size="32k", progress=lambda done, total: seen.append((done, total))
        )
        assert told["total_bytes"] == SIZE
        assert told["data_bytes"] + told["zero_bytes"] <= SIZE
        assert (told["compressed_bytes"] > 0) is compress
    assert seen[-1] == (SIZE, SIZE)
    assert seen == sorted(seen)
    same(target, contents())
    checked = json.loads(qemu_img("check", "--output=json", str(target)))
    assert (checked.get("compressed-clusters", 0) > 0) is compress
    with pytest.raises(FileExistsError):
        qcowkit.convert(source, target)


def test_convert_to_raw_and_encrypted(source: Path, tmp_path: Path) -> None:
    qcowkit.convert(source, tmp_path / "raw", format="raw")
    assert (tmp_path / "raw").read_bytes() == contents()
    qcowkit.convert(source, tmp_path / "secret.qcow2", key="k", encryption={"iter-time": 1})
    with qcowkit.open(tmp_path / "secret.qcow2", key="k") as image:
        assert image.read() == contents()
    qcowkit.convert(tmp_path / "secret.qcow2", tmp_path / "plain.qcow2", source_key="k")
    with qcowkit.open(tmp_path / "plain.qcow2") as image:
        assert image.read() == contents()
    with pytest.raises(qcowkit.errors.EncryptedError):
        qcowkit.convert(tmp_path / "secret.qcow2", tmp_path / "gone.qcow2")
    assert not (tmp_path / "gone.qcow2").exists()


def test_convert_a_snapshot_and_bytes(source: Path, tmp_path: Path, same: Same) -> None:
    with qcowkit.open(source, "r+") as image:
        image.create_snapshot("before")
        image.write(0, b"later")
    qcowkit.convert(source, tmp_path / "before.qcow2", snapshot="before")
    same(tmp_path / "before.qcow2", contents())
    qcowkit.convert(source.read_bytes(), tmp_path / "bytes.qcow2")
    same(tmp_path / "bytes.qcow2", b"later" + contents()[5:])


def test_a_bar_of_tqdms_is_moved(source: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    with tqdm(file=shown) as bar, qcowkit.open(source) as image:
        image.convert(tmp_path / "target.qcow2", progress=bar)
        assert (bar.n, bar.total) == (SIZE, SIZE)
    assert "100%" in shown.getvalue()


def test_what_a_progress_callback_raises_ends_the_call(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise StopIteration("enough")

    calls: list[Callable[[qcowkit.Image], object]] = [
        lambda image: image.convert(tmp_path / "target", progress=stop),
        lambda image: image.save_as(tmp_path / "target", progress=stop),
    ]
    for mode in ("r", "scratch"):
        with qcowkit.open(source, mode) as image:
            for call in calls:
                with pytest.raises(StopIteration, match="enough"):
                    call(image)
                assert image.read() == contents()
    assert [path.name for path in tmp_path.iterdir()] == ["source.qcow2"]


def test_a_callback_cannot_use_the_image_that_calls_it(source: Path, tmp_path: Path) -> None:
    with qcowkit.open(source, "r+") as image, pytest.raises(RuntimeError, match="busy"):
        image.convert(tmp_path / "target", progress=lambda done, total: image.read(0, 1))


def test_resize(source: Path, same: Same) -> None:
    with qcowkit.open(source, "r+") as image:
        image.resize(8 << 20)
        assert image.read(SIZE, 10) == bytes(10)
        image.resize("+1M", preallocation="metadata")
        assert image.size == 9 << 20
        image.write(8 << 20, b"behind")
        image.resize("-7M", shrink=True)
        assert image.size == 2 << 20
        with pytest.raises(ValueError, match="beyond"):
            image.read(2 << 20, 1)
        image.resize("4M")
    same(source, contents()[: 2 << 20].ljust(SIZE, b"\0"))


def test_snapshots_go_both_ways(source: Path, qemu_img: Run, qemu_info: Info, same: Same) -> None:
    with qcowkit.open(source, "r+") as image:
        first = image.create_snapshot("first")
        image.write(0, b"second")
        image.create_snapshot("second")
        image.create_snapshot("second")
        image.write(0, b"third!")
        assert [snapshot.id for snapshot in image.snapshots] == ["1", "2", "3"]
        assert image.snapshots[0] == first
        assert (first.disk_size, first.vm_state_size, first.vm_clock_nanoseconds) == (SIZE, 0, 0)
        with pytest.raises(InvalidArgumentError, match="several"):
            image.delete_snapshot("second")
        image.delete_snapshot(image.snapshots[2])
        listed = [snapshot.to_dict() for snapshot in image.snapshots]
    assert listed == qemu_info(source)["snapshots"]
    same(source, b"third!" + contents()[6:])
    qemu_img("snapshot", "-a", "second", str(source))
    with qcowkit.open(source, "r+") as image:
        assert image.read(0, 6) == b"second"
        image.apply_snapshot("first")
        assert image.read() == contents()
        image.delete_snapshot("first")
        image.delete_snapshot("second")
        assert image.snapshots == []
    same(source, contents())


def test_refcounts_that_are_too_narrow_refuse_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, SIZE, refcount_bits=1) as image:
        image.write(0, b"x")
        image.flush()
        before = path.read_bytes()
        with pytest.raises(LimitError):
            image.create_snapshot("s")
    assert path.read_bytes() == before


def test_bitmaps_are_those_of_qemu(source: Path, qemu_info: Info, qemu_img: Run, tmp_path: Path) -> None:
    with qcowkit.open(source, "r+") as image:
        image.add_bitmap("recording")
        image.add_bitmap("still", granularity=4096, enabled=False)
        image.write(1 << 20, noise(100_000))
        assert image.dirty_ranges("recording") == [(1 << 20, 131072)]
        assert image.dirty_ranges("still") == []
        image.merge_bitmap("still", "recording")
        image.clear_bitmap("recording")
        image.disable_bitmap("recording")
        image.enable_bitmap("still")
        image.add_bitmap("gone")
        image.remove_bitmap("gone")
    told = {bitmap["name"]: bitmap for bitmap in qemu_info(source)["format-specific"]["data"]["bitmaps"]}
    assert told["recording"]["flags"] == []
    assert (told["still"]["flags"], told["still"]["granularity"]) == (["auto"], 4096)
    with qcowkit.open(source) as image:
        assert image.dirty_ranges("still") == [(1 << 20, 131072)]
        assert [(bitmap.name, bitmap.dirty_bytes) for bitmap in image.bitmaps] == [("recording", 0), ("still", 131072)]
        with qcowkit.create(tmp_path / "other.qcow2", SIZE) as other:
            other.add_bitmap("copy")
            other.merge_bitmap("copy", "still", image)
            assert other.dirty_ranges("copy") == [(1 << 20, 131072)]
    qemu_img("check", str(source))


def test_amend(source: Path, qemu_info: Info, same: Same) -> None:
    seen: list[tuple[int, int]] = []
    with qcowkit.open(source, "r+") as image:
        image.amend(refcount_bits=1, lazy_refcounts=True, progress=lambda done, total: seen.append((done, total)))
        data = image.info()["format-specific"]["data"]
        assert (data["refcount-bits"], data["lazy-refcounts"]) == (1, True)
        image.amend(version=2, refcount_bits=16)
    assert seen
    assert qemu_info(source)["format-specific"]["data"]["compat"] == "0.10"
    same(source, contents())
    with qcowkit.open(source, "r+") as image:
        with pytest.raises(ValueError, match="compat"):
            image.amend(lazy_refcounts=True)
        image.amend(version=3)
        image.add_bitmap("b")
        with pytest.raises((UnsupportedError, ValueError)):
            image.amend(version=2)


@pytest.fixture
def overlay(source: Path, tmp_path: Path) -> Path:
    """An overlay with its own first cluster, over an empty image over the source."""
    middle, top = tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    qcowkit.create(middle, backing=source.name, backing_format="qcow2").close()
    with qcowkit.create(top, backing=middle.name, backing_format="qcow2") as image:
        image.write(0, b"overlay")
    return top


def test_commit_goes_into_the_backing_file(overlay: Path, tmp_path: Path, same: Same, qemu_info: Info) -> None:
    expected = b"overlay" + contents()[7:]
    with qcowkit.open(overlay, "r+", backing="same-dir") as image:
        assert image.commit() == {"data_bytes": 65536, "zero_bytes": 0}
        assert image.read() == expected
        image.write(0, b"OVERLAY")
        assert image.commit(keep=True)["data_bytes"] == 65536
        assert image.read(0, 7) == b"OVERLAY"
    same(tmp_path / "middle.qcow2", b"OVERLAY" + contents()[7:])
    same(overlay, b"OVERLAY" + contents()[7:])


def test_commit_into_a_deeper_layer(overlay: Path, tmp_path: Path, source: Path, same: Same) -> None:
    with qcowkit.open(overlay, "r+", backing="same-dir") as image:
        with pytest.raises(InvalidArgumentError, match="no 'gone'"):
            image.commit("gone")
        image.commit(source)
    same(source, b"overlay" + contents()[7:])


def test_commit_of_a_busy_base_leaves_everything(overlay: Path, tmp_path: Path) -> None:
    with (
        qcowkit.open(overlay, "r+", backing="same-dir") as image,
        qcowkit.open(tmp_path / "middle.qcow2"),
        pytest.raises(qcowkit.errors.LockedError),
    ):
        image.commit()
    with qcowkit.open(overlay, backing="same-dir") as image:
        assert image.read(0, 7) == b"overlay"


def test_the_image_goes_on_after_a_commit_that_failed(overlay: Path, tmp_path: Path) -> None:
    with qcowkit.open(overlay, "r+", backing="same-dir") as image:
        with qcowkit.open(tmp_path / "middle.qcow2"), pytest.raises(qcowkit.errors.LockedError):
            image.commit()
        assert image.read(0, 7) == b"overlay"
        image.write(0, b"goes on")
        image.commit()
        assert image.read(0, 7) == b"goes on"


def test_rebase(overlay: Path, tmp_path: Path, source: Path, same: Same, qemu_info: Info) -> None:
    expected = b"overlay" + contents()[7:]
    with qcowkit.open(overlay, "r+", backing="same-dir") as image:
        assert image.rebase(source.name, "qcow2") == {"data_bytes": 0, "zero_bytes": 0}
        assert image.read() == expected
        assert image.chain_length == 2
        report = image.rebase(None)
        assert report is not None
        assert report["data_bytes"] > 1 << 20
        assert image.chain_length == 1
    same(overlay, expected)
    with qcowkit.open(overlay, "r+", backing="same-dir") as image:
        assert image.rebase(source.name, "qcow2", unsafe=True) is None
        assert image.chain_length == 2
    assert qemu_info(overlay)["backing-filename"] == source.name
    same(overlay, expected)
    with qcowkit.open(overlay, "r+") as image, pytest.raises(InvalidArgumentError, match="not opened"):
        image.rebase(None)


def test_several_sources_stand_behind_one_another(source: Path, tmp_path: Path, same: Same) -> None:
    with qcowkit.open(source) as image:
        first = image.read()
    with qcowkit.create(tmp_path / "second.qcow2", "2M", cluster_size=512) as image:
        image.write(512, b"behind")
        second = image.read()
    report = qcowkit.convert([source, tmp_path / "second.qcow2", source], tmp_path / "all.qcow2")
    assert report["total_bytes"] == 2 * len(first) + len(second)
    same(tmp_path / "all.qcow2", first + second + first)
    with pytest.raises(qcowkit.errors.InvalidArgumentError):
        qcowkit.convert([], tmp_path / "none.qcow2")
    with pytest.raises(qcowkit.errors.UnsupportedError):
        qcowkit.convert([source.read_bytes(), source], tmp_path / "none.qcow2")
    with pytest.raises(qcowkit.errors.InvalidArgumentError):
        qcowkit.convert([source, tmp_path / "second.qcow2"], tmp_path / "second.qcow2", overwrite=True)
    assert not (tmp_path / "none.qcow2").exists()


def test_what_the_backing_file_has_is_not_copied(overlay: Path, tmp_path: Path, qemu_img: Run) -> None:
    with qcowkit.open(overlay, backing="same-dir") as image:
        base = str(image.info().backing_filename)
        expected = image.read()
        report = image.convert(tmp_path / "thin.qcow2", backing=base, backing_format="qcow2")
    assert report["data_bytes"] < len(expected)
    with qcowkit.open(tmp_path / "thin.qcow2", backing="same-dir") as image:
        assert image.info().backing_filename == base
        assert image.read() == expected
    assert "identical" in qemu_img("compare", str(overlay), str(tmp_path / "thin.qcow2"))
    with qcowkit.open(overlay, backing="same-dir") as image:
        with pytest.raises(FileNotFoundError):
            image.convert(tmp_path / "no.qcow2", backing="missing.qcow2", backing_format="qcow2")
        with pytest.raises(qcowkit.errors.InvalidArgumentError):
            image.convert(tmp_path / "no.qcow2", backing=base)
    assert not (tmp_path / "no.qcow2").exists()


def test_file_objects_are_targets(source: Path, tmp_path: Path, same: Same) -> None:
    with qcowkit.open(source, "scratch") as image:
        image.write(0, b"edited")
        disk = image.read()
        saved, packed, raw = io.BytesIO(), io.BytesIO(), io.BytesIO(b"longer than nothing")
        image.save_as(saved)
        image.convert(packed, compress=True)
        with pytest.raises(FileExistsError):
            image.convert(raw, format="raw")
        assert raw.getvalue() == b"longer than nothing"
        image.convert(raw, format="raw", overwrite=True)
        assert raw.getvalue() == disk
        with pytest.raises(TypeError):
            image.save_as(object())  # type: ignore[arg-type]
        with pytest.raises(qcowkit.errors.UnsupportedError):
            image.convert(io.BytesIO(), data_file="elsewhere.raw")
    for number, made in enumerate((saved, packed)):
        path = tmp_path / f"{number}.qcow2"
        path.write_bytes(made.getvalue())
        same(path, disk)


def test_keys_come_and_go(tmp_path: Path, qemu_img: Run) -> None:
    path = tmp_path / "secret.qcow2"
    with qcowkit.create(path, "1M", key="first", encryption={"iter-time": 10}) as image:
        image.write(0, b"hidden")
        assert image.add_key(b"second", slot=3, iter_time=10) == 3
        assert [number for number, used in enumerate(image.key_slots) if used] == [0, 3]
        with pytest.raises(qcowkit.errors.InvalidArgumentError, match="in use"):
            image.add_key("third", slot=3, iter_time=10)
        with pytest.raises(qcowkit.errors.InvalidArgumentError):
            image.add_key("third", iter_time=0)
    with qcowkit.open(path, "r+", key="second") as image:
        assert image.read(0, 6) == b"hidden"
        for wrong in ({}, {"key": "first", "slot": 0}, {"key": "none"}):
            with pytest.raises(qcowkit.errors.InvalidArgumentError):
                image.erase_key(**wrong)
        assert image.erase_key("first") == [0]
        with pytest.raises(qcowkit.errors.InvalidArgumentError, match="last key"):
            image.erase_key(slot=3)
    with pytest.raises(qcowkit.errors.WrongKeyError):
        qcowkit.open(path, key="first")
    with qcowkit.open(path, key="second") as image, pytest.raises(qcowkit.errors.ReadOnlyError):
        image.add_key("fourth", iter_time=10)
    with qcowkit.open(path, "scratch") as image, pytest.raises(qcowkit.errors.EncryptedError):
        image.add_key("fourth", iter_time=10)
    opened = f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"
    assert "1 MiB" in qemu_img("info", "--object", "secret,id=s,data=second", "--image-opts", opened)
    with qcowkit.create(tmp_path / "open.qcow2", "1M") as image, pytest.raises(qcowkit.errors.QcowError):
        assert image.key_slots
