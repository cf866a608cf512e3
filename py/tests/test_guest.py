"""The guest's bytes: read, written, zeroed and discarded, as QEMU sees them; and wrong calls, which change nothing."""

from __future__ import annotations

import array
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import qcowkit
from qcowkit import DiscardPolicy
from qcowkit.errors import InvalidArgumentError, NoSpaceError, OutOfRangeError

Same = Callable[[Path, bytes], None]
SIZE = 4 << 20
SHAPES: list[dict[str, Any]] = [
    {},
    {"version": 2},
    {"cluster_size": 512},
    {"cluster_size": "2M"},
    {"extended_l2": True},
    {"refcount_bits": 1},
    {"refcount_bits": 64, "compression": "zstd"},
    {"preallocation": "metadata"},
    {"preallocation": "full", "lazy_refcounts": True},
    {"data_file": "disk.data", "data_file_raw": True},
]


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_written_here_qemu_reads(shape: dict[str, Any], tmp_path: Path, same: Same) -> None:
    path = tmp_path / "disk.qcow2"
    disk = bytearray(SIZE)
    chance = random.Random(str(shape))
    with qcowkit.create(path, SIZE, **shape) as image:
        for turn in range(60):
            offset = chance.randrange(SIZE)
            length = min(chance.randrange(200_000), SIZE - offset)
            if turn % 4 == 3:
                image.write_zeroes(offset, length, unmap=bool(turn % 8 == 3))
                disk[offset : offset + length] = bytes(length)
            else:
                data = noise(length, turn)
                assert image.write(offset, data) == length
                disk[offset : offset + length] = data
            if turn == 30:
                image.flush()
        assert image.read() == disk
    same(path, bytes(disk))


@pytest.mark.parametrize("shape", [{}, {"extended_l2": True}, {"version": 2}], ids=str)
@pytest.mark.parametrize("policy", ["unmap", "no-unref", "ignore"])
def test_discards_follow_the_policy(shape: dict[str, Any], policy: str, tmp_path: Path, same: Same) -> None:
    path = tmp_path / "disk.qcow2"
    disk = bytearray(noise(SIZE))
    with qcowkit.create(path, SIZE, policy=policy, **shape) as image:
        image.write(0, disk)
        image.discard(65536, 1 << 20)
        if policy != "ignore":
            disk[65536 : 65536 + (1 << 20)] = bytes(1 << 20)
        assert image.read() == disk
        before = image.file_size
        image.write(65536, b"again" * 1000)
        disk[65536 : 65536 + 5000] = b"again" * 1000
        if policy == "no-unref" and shape.get("version") != 2:
            # The place was kept.
            assert image.file_size == before
    same(path, bytes(disk))


def test_a_policy_for_once(tmp_path: Path, qemu_img: Run) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, SIZE) as image:
        image.write(0, noise(SIZE))
        image.discard(0, 65536, policy="no-unref")
        image.discard(65536, 65536)
        image.discard(131072, 65536, policy=DiscardPolicy(discard="ignore"))
        assert image.read(0, 131072) == bytes(131072)
        assert image.read(131072, 8) == noise(131080)[131072:]
    extents = qemu_img("map", "--output=json", str(path))
    assert '"start": 0, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false' in extents
    assert '"offset": ' in extents.splitlines()[0]
    assert '"offset": ' not in extents.splitlines()[1]


def test_detect_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, SIZE, policy=DiscardPolicy(detect_zeroes="unmap")) as image:
        image.write(0, bytes(SIZE))
        assert image.file_size < SIZE


def test_a_compressed_image_is_read(tmp_path: Path, qemu_img: Run) -> None:
    data = (b"compress me " * 100_000)[:SIZE]
    (tmp_path / "plain").write_bytes(data.ljust(SIZE, b"\0"))
    for method in ("zlib", "zstd"):
        options = f"compression_type={method}"
        qemu_img("convert", "-c", "-O", "qcow2", "-o", options, "plain", f"{method}.qcow2")
        with qcowkit.open(tmp_path / f"{method}.qcow2") as image:
            assert image.read() == data.ljust(SIZE, b"\0")
            assert image.read(12 * 1000 + 5, 24) == data[12005:12029]


def buffers(length: int) -> list[tuple[Any, Callable[[Any], bytes]]]:
    return [
        (bytearray(length), bytes),
        (memoryview(bytearray(length)), bytes),
        (array.array("I", bytes(length)), lambda filled: filled.tobytes()),
        (memoryview(bytearray(length)).cast("B", (4, length // 4)), lambda filled: filled.tobytes()),
    ]


@pytest.mark.parametrize("length", [4, 4096, 9 << 20])
def test_readinto_takes_every_writable_contiguous_buffer(length: int, tmp_path: Path) -> None:
    data = noise(length + 7)
    with qcowkit.create(tmp_path / "disk.qcow2", 16 << 20) as image:
        image.write(3, data)
        for buffer, contents in buffers(length):
            assert image.readinto(10, buffer) == length
            assert contents(buffer) == data[7:]
        assert image.readinto(0, bytearray()) == 0


def test_buffers_that_cannot_be_filled(disk: Path) -> None:
    with qcowkit.open(disk) as image:
        with pytest.raises(BufferError, match="read-only"):
            image.readinto(0, b"read only")
        with pytest.raises(BufferError, match="contiguous"):
            image.readinto(0, memoryview(bytearray(10))[::2])
        with pytest.raises(TypeError):
            image.readinto(0, "text")  # type: ignore[arg-type]


def test_every_buffer_can_be_written(disk: Path) -> None:
    with qcowkit.open(disk, "r+") as image:
        for data in (b"abcd", bytearray(b"abcd"), memoryview(b"a-b-c-d-")[::2], array.array("B", b"abcd")):
            image.write(0, bytes(4))
            assert image.write(0, data) == 4
            assert image.read(0, 4) == b"abcd"
        with pytest.raises(TypeError):
            image.write(0, "text")  # type: ignore[arg-type]


WRONG: list[tuple[type[Exception], Callable[[qcowkit.Image], object]]] = [
    (OutOfRangeError, lambda image: image.read(64 << 20, 1)),
    (OutOfRangeError, lambda image: image.read(0, 1 << 63)),
    (OutOfRangeError, lambda image: image.read(2**64 - 1, 2**64 - 1)),
    (OutOfRangeError, lambda image: image.read(2**64, 1)),
    (OutOfRangeError, lambda image: image.readinto((64 << 20) - 1, bytearray(2))),
    (OutOfRangeError, lambda image: image.write((64 << 20) - 1, b"ab")),
    (OutOfRangeError, lambda image: image.write(1 << 50, b"a")),
    (OutOfRangeError, lambda image: image.write_zeroes(0, (64 << 20) + 1)),
    (OutOfRangeError, lambda image: image.discard(65536, 64 << 20)),
    (OutOfRangeError, lambda image: image.discard(65536, 64 << 20, policy="no-unref")),
    (InvalidArgumentError, lambda image: image.read(-1, 1)),
    (InvalidArgumentError, lambda image: image.read(0, -1)),
    (InvalidArgumentError, lambda image: image.write(-1, b"a")),
    (InvalidArgumentError, lambda image: image.write_zeroes(0, -1)),
    (InvalidArgumentError, lambda image: image.discard(0, 1, policy="maybe")),
    (InvalidArgumentError, lambda image: image.resize(0)),
    (InvalidArgumentError, lambda image: image.resize(512)),
    (InvalidArgumentError, lambda image: image.resize("32M")),
    (InvalidArgumentError, lambda image: image.resize("large")),
    (InvalidArgumentError, lambda image: image.resize("-1T")),
    (InvalidArgumentError, lambda image: image.resize("1G", preallocation="some")),  # type: ignore[arg-type]
    (InvalidArgumentError, lambda image: image.resize("32M", shrink=True, preallocation="full")),
    (InvalidArgumentError, lambda image: image.resize(2**63)),
    (InvalidArgumentError, lambda image: image.create_snapshot("n" * 256)),
    (InvalidArgumentError, lambda image: image.apply_snapshot("gone")),
    (InvalidArgumentError, lambda image: image.delete_snapshot("gone")),
    (InvalidArgumentError, lambda image: image.add_bitmap("b", granularity=1000)),
    (InvalidArgumentError, lambda image: image.add_bitmap("n" * 2000)),
    (InvalidArgumentError, lambda image: image.remove_bitmap("gone")),
    (InvalidArgumentError, lambda image: image.merge_bitmap("gone", "gone")),
    (InvalidArgumentError, lambda image: image.dirty_ranges("gone")),
    (InvalidArgumentError, lambda image: image.amend(refcount_bits=3)),
    (InvalidArgumentError, lambda image: image.amend(version=4)),  # type: ignore[arg-type]
    (InvalidArgumentError, lambda image: image.amend(data_file="x")),
    (InvalidArgumentError, lambda image: image.rebase("gone")),
    (FileNotFoundError, lambda image: image.rebase("gone", "qcow2")),
    (InvalidArgumentError, lambda image: image.commit()),
    (InvalidArgumentError, lambda image: image.commit("gone")),
    (InvalidArgumentError, lambda image: image.view("gone")),
    (InvalidArgumentError, lambda image: image.convert("out", workers=0)),
    (InvalidArgumentError, lambda image: image.convert("out", sparse_size=1000)),
    (InvalidArgumentError, lambda image: image.convert("out", cluster_size=1000)),
    (InvalidArgumentError, lambda image: image.convert("out", key="k", encryption={"hash-alg": "none"})),
    (InvalidArgumentError, lambda image: image.convert("out", encryption={"hash-alg": "sha1"})),
    (InvalidArgumentError, lambda image: image.convert(image.path or "", overwrite=True)),
    (FileExistsError, lambda image: image.convert(image.path or "")),
    (FileNotFoundError, lambda image: image.save_as("gone/out")),
    (TypeError, lambda image: image.read("0", 1)),  # type: ignore[arg-type]
    (TypeError, lambda image: image.read(0.0, 1)),  # type: ignore[arg-type]
    (TypeError, lambda image: image.convert("out", refcounts=3)),  # type: ignore[call-arg]
    (InvalidArgumentError, lambda image: image.amend(refcount_bits=2**40)),
    (InvalidArgumentError, lambda image: image.amend(version=-1)),  # type: ignore[arg-type]
    (InvalidArgumentError, lambda image: image.amend(version=1 << 70)),  # type: ignore[arg-type]
    (InvalidArgumentError, lambda image: image.convert("out", workers=-1)),
    (InvalidArgumentError, lambda image: image.convert("out", workers=1 << 70)),
    (TypeError, lambda image: image.apply(7)),  # type: ignore[call-overload]
    (TypeError, lambda image: image.convert("out", behind=[7])),  # type: ignore[list-item]
    (TypeError, lambda image: image.create_snapshot(b"name")),  # type: ignore[arg-type]
    (TypeError, lambda image: image.delta(image="other")),  # type: ignore[arg-type]
    (TypeError, lambda image: image.merge_bitmap("b", "b", 7)),  # type: ignore[arg-type]
    (TypeError, lambda image: image.map(progress=7)),  # type: ignore[arg-type]
    (InvalidArgumentError, lambda image: image.save_as(image.path or "", overwrite=True)),
    (qcowkit.errors.UnsupportedError, lambda image: image.convert("out", format="vmdk")),  # type: ignore[arg-type]
    (qcowkit.errors.UnsupportedError, lambda image: image.convert("out", format="raw", compress=True)),
]


@pytest.mark.parametrize(("kind", "call"), WRONG)
def test_wrong_calls_raise_what_is_documented_and_change_nothing(
    kind: type[Exception], call: Callable[[qcowkit.Image], object], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(disk.parent)
    with qcowkit.open(disk, "r+") as image:
        image.write(0, b"before")
        image.create_snapshot("s")
    before = disk.read_bytes()
    with qcowkit.open(disk, "r+") as image:
        with pytest.raises(kind) as caught:
            call(image)
        assert isinstance(caught.value, (OSError, ValueError, TypeError))
        assert image.read(0, 6) == b"before"
    assert disk.read_bytes() == before
    assert [path.name for path in disk.parent.iterdir()] == ["disk.qcow2"]


def test_out_of_range_says_where(disk: Path) -> None:
    with qcowkit.open(disk) as image, pytest.raises(OutOfRangeError) as caught:
        image.read(64 << 20, 1)
    assert caught.value.guest_offset == 64 << 20
    assert caught.value.filename == str(disk)
    assert caught.value.hint is not None
    assert isinstance(caught.value, ValueError)


def test_a_corrupt_entry_says_where_it_is(disk: Path) -> None:
    with qcowkit.open(disk, "r+") as image:
        image.write(0, b"x")
    with disk.open("r+b") as file:
        file.seek(4 * 65536)  # the first L2 table of a new image
        file.write((0x8000_0000_0000_0000 | 0x50200).to_bytes(8, "big"))
    with qcowkit.open(disk) as image, pytest.raises(qcowkit.errors.CorruptImageError) as caught:
        image.read(0, 1)
    error = caught.value
    assert (error.structure, error.guest_offset, error.depth) == ("l2_table", 0, None) or error.structure == "l2_table"
    assert error.hint is not None


def test_the_disk_is_a_file(disk: Path) -> None:
    with qcowkit.open(disk, "r+") as image:
        file = image.disk()
        assert (file.size, file.mode, file.readable(), file.seekable(), file.writable()) == (
            64 << 20,
            "rb+",
            True,
            True,
            True,
        )
        assert file.seek(1000) == 1000
        assert file.write(b"hello") == 5
        assert file.tell() == 1005
        assert file.seek(-5, io.SEEK_CUR) == 1000
        assert file.read(5) == b"hello"
        assert file.seek(-3, io.SEEK_END) == (64 << 20) - 3
        assert file.write(b"abcdef") == 3
        with pytest.raises(NoSpaceError):
            file.write(b"def")
        assert file.read(10) == b""
        assert file.seek(1 << 40) == 1 << 40
        assert file.read(10) == b""
        file.seek(-3, io.SEEK_END)
        assert file.readall() == b"abc"
        assert file.truncate(64 << 20) == 64 << 20
        with pytest.raises(io.UnsupportedOperation, match="resize"):
            file.truncate(1000)
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 5)
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)
        assert not image.closed
        with io.BufferedRandom(image.disk()) as buffered:
            buffered.seek(998)
            assert buffered.read(8) == b"\0\0hello\0"
            buffered.seek(1000)
            buffered.write(b"HELLO")
        assert image.read(1000, 5) == b"HELLO"
    with qcowkit.open(disk) as image:
        file = image.disk()
        assert (file.mode, file.writable()) == ("rb", False)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


def test_an_image_is_read_through_another(disk: Path, tmp_path: Path) -> None:
    nested = io.BytesIO()
    with qcowkit.create(nested, "16M") as image:
        image.write(0, b"nested")
    with qcowkit.open(disk, "r+") as outer:
        outer.write(0, nested.getvalue())
        with qcowkit.open(io.BufferedRandom(outer.disk()), "r+") as inner:
            inner.write(6, b" disk")
        with qcowkit.open(outer.disk()) as inner:
            assert inner.read(0, 11) == b"nested disk"
