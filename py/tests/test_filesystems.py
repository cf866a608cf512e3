"""A guest's file system, made by mkfs, read through the disk by dissect and pytsk3."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytsk3
from conftest import Run
from dissect.extfs import ExtFS

import qcowkit

TEXT = b"a file inside the guest\n" * 5000
START = 1 << 20


class Disk(pytsk3.Img_Info):  # type: ignore[misc]
    """What pytsk3 wants of an image."""

    def __init__(self, disk: qcowkit.GuestDisk) -> None:
        self._disk = disk
        super().__init__(url="")

    def read(self, offset: int, size: int) -> bytes:
        self._disk.seek(offset)
        return self._disk.read(size) or b""

    def get_size(self) -> int:
        return self._disk.size


@pytest.fixture(params=["plain", "compressed", "overlay", "object"])
def guest(request: pytest.FixtureRequest, tmp_path: Path, qemu_img: Run) -> Callable[[], qcowkit.Image]:
    """Opens an image of a disk with one partition that holds an ext4 file system."""
    program = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        pytest.skip("mkfs.ext4 is missing")
    files = tmp_path / "files"
    (files / "etc").mkdir(parents=True)
    (files / "etc" / "text").write_bytes(TEXT)
    filesystem = tmp_path / "ext4"
    filesystem.write_bytes(bytes(16 << 20))
    subprocess.run([program, "-q", "-d", str(files), str(filesystem)], check=True, capture_output=True)
    raw = bytearray(START) + filesystem.read_bytes()
    raw[446:462] = (
        bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (START // 512).to_bytes(4, "little") + (32768).to_bytes(4, "little")
    )
    raw[510:512] = b"\x55\xaa"
    (tmp_path / "raw").write_bytes(raw)
    path = tmp_path / "guest.qcow2"
    packed = ["-c"] if request.param == "compressed" else []
    qemu_img("convert", *packed, "-f", "raw", "-O", "qcow2", "raw", str(path))
    if request.param == "object":
        return lambda: qcowkit.open(io.BytesIO(path.read_bytes()))
    if request.param == "overlay":
        qemu_img("create", "-q", "-f", "qcow2", "-b", "guest.qcow2", "-F", "qcow2", "top.qcow2")
        return lambda: qcowkit.open(tmp_path / "top.qcow2", backing="same-dir")
    return lambda: qcowkit.open(path)


def test_partitions_are_listed(guest: Callable[[], qcowkit.Image]) -> None:
    with guest() as image:
        table = image.partitions()
        assert (table.scheme, table.block_size, table.faults) == ("mbr", 512, ())
        (part,) = table
        assert (part.number, part.start, part.size, part.type_name) == (1, START, 16 << 20, "Linux")
        assert part.to_dict()["start"] == START


def test_dissect_reads_a_file(guest: Callable[[], qcowkit.Image]) -> None:
    with guest() as image:
        filesystem = ExtFS(io.BufferedReader(image.partitions()[0].disk()))
        assert filesystem.get("/etc/text").open().read() == TEXT


def test_pytsk3_reads_a_file(guest: Callable[[], qcowkit.Image]) -> None:
    with guest() as image:
        filesystem = pytsk3.FS_Info(Disk(image.disk()), offset=START)
        file = filesystem.open("/etc/text")
        assert file.read_random(0, file.info.meta.size) == TEXT
