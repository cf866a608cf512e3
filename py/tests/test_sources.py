"""What images are opened from, and in which modes."""

from __future__ import annotations

import io
import mmap
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import Run

import qcowkit
from qcowkit.errors import InvalidArgumentError, LockedError, NotQcow2Error, ReadOnlyError

HELLO = 1 << 20
Same = Callable[[Path, bytes], None]


@pytest.fixture
def hello(disk: Path) -> Path:
    with qcowkit.open(disk, "r+") as image:
        image.write(HELLO, b"hello")
    return disk


class OnlyReadInto:
    """The least that a file object may be, and one that gives little at a time."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def seek(self, offset: int, whence: int = 0) -> None:
        self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: bytearray) -> int:
        return self.file.readinto(memoryview(buffer)[:1000])


class ShortReads(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 777))


def sources(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    yield from (data, bytearray(data), memoryview(data), io.BytesIO(data), OnlyReadInto(data), ShortReads(data))
    with path.open("rb") as file:
        yield file
        file.seek(0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped
    with path.open("rb", buffering=0) as unbuffered:
        yield unbuffered
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("disk.qcow2", data)
    with zipfile.ZipFile(archive) as packed, packed.open("disk.qcow2") as member:
        yield member
    memory = fsspec.filesystem("memory")
    memory.pipe("/disk.qcow2", data)
    with memory.open("/disk.qcow2", "rb") as file:
        yield file


def test_every_source_shows_the_same_disk(hello: Path) -> None:
    with qcowkit.open(hello) as image:
        expected = image.info()["format-specific"]
    count = 0
    for source in sources(hello):
        with qcowkit.open(source) as image:
            assert image.read(HELLO - 1, 7) == b"\0hello\0", source
            assert image.info()["format-specific"] == expected
            assert image.size == 64 << 20
            assert image.path is None
        count += 1
    assert count == 11


@pytest.mark.parametrize("wrong", [None, 5, 1.5, object(), ["disk.qcow2"], io.StringIO("text")])
def test_what_is_no_source_is_a_type_error(wrong: object) -> None:
    with pytest.raises((TypeError, OSError)) as caught:
        qcowkit.open(wrong)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError) or "seek" in str(caught.value)


def test_a_file_object_that_cannot_seek_is_refused() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(ValueError, match="seek"):
        qcowkit.open(Pipe(b"QFI\xfb"))


def test_what_a_file_object_raises_comes_out_unharmed(hello: Path) -> None:
    class Broken(io.BytesIO):
        broken = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.broken:
                raise ConnectionResetError("the bucket is gone")
            return super().read(size)

    source = Broken(hello.read_bytes())
    with qcowkit.open(source) as image:
        source.broken = True
        with pytest.raises(ConnectionResetError, match="the bucket is gone") as caught:
            image.read(HELLO, 5)
        assert caught.traceback[-1].name == "read"
        source.broken = False
        assert image.read(HELLO, 5) == b"hello"


def test_a_file_object_that_is_cut_is_told(hello: Path) -> None:
    data = hello.read_bytes()

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return b"" if self.tell() >= 1000 else super().read(size)

    with pytest.raises(OSError, match="before its end"):
        qcowkit.open(Cut(data))


def test_a_file_object_can_be_written(hello: Path, tmp_path: Path, same: Same) -> None:
    source = io.BytesIO(hello.read_bytes())
    disk = bytearray(64 << 20)
    with qcowkit.open(source, "r+") as image:
        image.write(5, b"x" * 200_000)
        image.discard(0, 65536)
        image.write_zeroes(70_000, 10)
        image.create_snapshot("now")
        image.write(HELLO, b"HELLO")
    disk[5:200_005] = b"x" * 200_000
    disk[:65536] = bytes(65536)
    disk[70_000:70_010] = bytes(10)
    disk[HELLO : HELLO + 5] = b"HELLO"
    written = tmp_path / "written.qcow2"
    written.write_bytes(source.getvalue())
    same(written, bytes(disk))


def test_a_file_object_holds_a_new_image(tmp_path: Path, same: Same) -> None:
    target = io.BytesIO()
    with qcowkit.create(target, "1M") as image:
        image.write(0, b"new")
    path = tmp_path / "new.qcow2"
    path.write_bytes(target.getvalue())
    same(path, b"new".ljust(1 << 20, b"\0"))
    with pytest.raises(FileExistsError):
        qcowkit.create(target, "1M")
    with qcowkit.create(target, "2M", overwrite=True) as image:
        assert image.read(0, 3) == b"\0\0\0"


def test_bytes_are_not_changed_in_place(hello: Path) -> None:
    data = bytearray(hello.read_bytes())
    with pytest.raises(InvalidArgumentError, match="scratch"):
        qcowkit.open(data, "r+")
    with qcowkit.open(data, "scratch") as image:
        image.write(HELLO, b"HELLO")
        assert image.read(HELLO, 5) == b"HELLO"
    assert bytes(data) == hello.read_bytes()


def test_a_file_object_that_is_only_read_cannot_be_opened_for_writing(hello: Path) -> None:
    with hello.open("rb") as file, pytest.raises(ValueError, match="cannot be written"):
        qcowkit.open(file, "r+")


def test_scratch_leaves_the_source_and_saves_elsewhere(hello: Path, tmp_path: Path, same: Same) -> None:
    before = hello.read_bytes()
    disk = bytearray(64 << 20)
    disk[HELLO : HELLO + 5] = b"hello"
    noise = random.Random(7).randbytes(100_000)
    disk[7 << 20 : (7 << 20) + 100_000] = noise
    target = tmp_path / "saved.qcow2"
    with qcowkit.open(hello, "scratch") as image:
        assert image.edited_bytes == 0
        image.write(7 << 20, noise)
        image.add_bitmap("changes")
        assert image.edited_bytes >= 100_000
        seen: list[tuple[int, int]] = []
        image.save_as(target, progress=lambda done, total: seen.append((done, total)))
        with pytest.raises(FileExistsError):
            image.save_as(target)
    assert seen[-1][0] == seen[-1][1] == target.stat().st_size
    assert hello.read_bytes() == before
    same(target, bytes(disk))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.qcow2", "saved.qcow2"]
    with qcowkit.open(target) as image:
        assert [bitmap.name for bitmap in image.bitmaps] == ["changes"]


def test_scratch_can_replace_its_own_source(hello: Path, same: Same) -> None:
    disk = bytearray(64 << 20)
    disk[HELLO : HELLO + 5] = b"HELLO"
    with qcowkit.open(hello, "scratch") as image:
        image.write(HELLO, b"HELLO")
        image.save_as(hello, overwrite=True)
        assert image.read(HELLO, 5) == b"HELLO"
    same(hello, bytes(disk))


def test_modes(hello: Path) -> None:
    with qcowkit.open(hello) as image, pytest.raises(ReadOnlyError) as caught:
        image.write(0, b"x")
    assert caught.value.hint is not None
    assert "r+" in caught.value.hint
    assert caught.value.__notes__ == [caught.value.hint]
    with pytest.raises(InvalidArgumentError, match="mode"):
        qcowkit.open(hello, "w")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="lock"):
        qcowkit.open(hello, "r+", lock=False)
    with pytest.raises(InvalidArgumentError, match="foo"):
        qcowkit.open(hello, options={"foo": 1})
    with pytest.raises(InvalidArgumentError, match="mode"):
        qcowkit.open(hello, "r+", options={"read-only": True})
    with pytest.raises(InvalidArgumentError, match="no discard policy"):
        qcowkit.open(hello, policy="gone")


def test_locks(hello: Path) -> None:
    with qcowkit.open(hello, "r+") as image:
        image.write(0, b"x")
        image.flush()
        with pytest.raises(LockedError):
            qcowkit.open(hello)
        with qcowkit.open(hello, lock=False) as other:
            assert other.read(0, 1) == b"x"
    with qcowkit.open(hello), qcowkit.open(hello), qcowkit.open(hello, "scratch"):
        pass


def test_an_image_that_is_forgotten_is_flushed_and_complained_about(hello: Path) -> None:
    image = qcowkit.open(hello, "r+")
    image.write(0, b"forgotten")
    with pytest.warns(ResourceWarning, match="unclosed image"):
        del image
    with qcowkit.open(hello) as image:
        assert image.read(0, 9) == b"forgotten"


def test_probe(hello: Path, tmp_path: Path, qemu_img: Run) -> None:
    with qcowkit.open(hello, "r+"):
        assert qcowkit.probe(hello)["virtual-size"] == 64 << 20
    assert qcowkit.probe(bytes(512)) == {"format": "raw", "virtual-size": 512}
    qemu_img("create", "-f", "vmdk", "other.vmdk", "1M")
    assert qcowkit.probe(tmp_path / "other.vmdk") == {"format": "vmdk"}
    with pytest.raises(NotQcow2Error):
        qcowkit.open(tmp_path / "other.vmdk")
    with pytest.raises(FileNotFoundError):
        qcowkit.probe(tmp_path / "gone")


def test_a_snapshot_is_a_view(hello: Path) -> None:
    with qcowkit.open(hello, "r+") as image:
        snapshot = image.create_snapshot("before")
        image.write(HELLO, b"later")
        image.resize("128M")
        with image.view("before") as view:
            assert view.read(HELLO, 5) == b"hello"
            assert (view.size, view.mode) == (64 << 20, "r")
            image.write(HELLO, b"even later")
            assert view.read(HELLO, 5) == b"hello"
            with pytest.raises(LockedError, match="view"):
                image.delete_snapshot("before")
            with pytest.raises(LockedError, match="view"):
                image.resize("256M")
            with pytest.raises(LockedError, match="view"):
                image.amend(refcount_bits=32)
        image.delete_snapshot(snapshot)
        with pytest.raises(InvalidArgumentError, match="no snapshot"):
            image.view("before")
    with pytest.raises(InvalidArgumentError, match="no snapshot"):
        qcowkit.open(hello, snapshot="before")


def test_a_snapshot_is_opened_by_itself(hello: Path) -> None:
    with qcowkit.open(hello, "r+") as image:
        image.create_snapshot("before")
        image.write(HELLO, b"later")
    for name in ("before", "1"):
        with qcowkit.open(hello, snapshot=name) as image:
            assert image.read(HELLO, 5) == b"hello"
            with pytest.raises(ReadOnlyError):
                image.write(0, b"x")
    with pytest.raises(InvalidArgumentError, match="only read"):
        qcowkit.open(hello, "r+", snapshot="before")
    with pytest.raises(InvalidArgumentError, match="only read"):
        qcowkit.open(hello, "scratch", snapshot="before")


CLOSED: list[Callable[[qcowkit.Image], object]] = [
    lambda image: image.read(0, 1),
    lambda image: image.readinto(0, bytearray(1)),
    lambda image: image.write(0, b"x"),
    lambda image: image.write_zeroes(0, 1),
    lambda image: image.discard(0, 1),
    lambda image: image.discard(0, 1, policy="no-unref"),
    lambda image: image.flush(),
    lambda image: image.size,
    lambda image: image.cluster_size,
    lambda image: image.info(),
    lambda image: image.snapshots,
    lambda image: image.create_snapshot("a"),
    lambda image: image.bitmaps,
    lambda image: image.resize(1),
    lambda image: image.amend(refcount_bits=1),
    lambda image: image.rebase(None),
    lambda image: image.commit(),
    lambda image: image.save_as("gone"),
    lambda image: image.convert("gone"),
    lambda image: image.partitions(),
    lambda image: image.view("a"),
    lambda image: image.disk().read(1),
]


@pytest.mark.parametrize("call", CLOSED)
def test_use_after_close_is_an_error(call: Callable[[qcowkit.Image], object], hello: Path) -> None:
    image = qcowkit.open(hello, "r+")
    image.close()
    before = hello.read_bytes()
    with pytest.raises(ValueError, match="the image is closed"):
        call(image)
    assert hello.read_bytes() == before


def test_a_file_in_use_is_not_replaced(tmp_path: Path) -> None:
    used, other = tmp_path / "used.qcow2", tmp_path / "other.qcow2"
    for path in (used, other):
        qcowkit.create(path, "1M").close()
    with qcowkit.open(used, "r+") as user:
        inode = used.stat().st_ino
        with qcowkit.open(other, "scratch") as image, pytest.raises(LockedError):
            image.save_as(used, overwrite=True)
        # Its own source too, if that was opened beside the lock of another.
        with qcowkit.open(used, "scratch", lock=False) as image, pytest.raises(LockedError):
            image.save_as(used, overwrite=True)
        assert used.stat().st_ino == inode
        user.write(0, b"still here")
    with qcowkit.open(used) as image:
        assert image.read(0, 10) == b"still here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.qcow2", "used.qcow2"]


def test_a_backing_file_is_not_replaced_by_what_needs_it(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    with qcowkit.create(base, "1M") as image:
        image.write(0, b"below")
    qcowkit.create(top, backing=base, backing_format="qcow2").close()
    before = base.read_bytes()
    with (
        qcowkit.open(top, "scratch", backing="same-dir") as image,
        pytest.raises(InvalidArgumentError, match="a file of this image"),
    ):
        image.save_as(base, overwrite=True)
    assert base.read_bytes() == before


def test_only_files_are_replaced(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    qcowkit.create(tmp_path / "disk.qcow2", "1M").close()
    with qcowkit.open(tmp_path / "disk.qcow2") as image:
        for target in (pipe, folder):
            for overwrite in (False, True):
                with pytest.raises(InvalidArgumentError, match="only a file is replaced"):
                    image.save_as(target, overwrite=overwrite)
    assert pipe.is_fifo()
    assert folder.is_dir()
