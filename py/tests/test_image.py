"""Opening images and asking what they are."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import qcowkit
from qcowkit.errors import CorruptImageError, LockedError, NotQcow2Error, UnsupportedError

Info = Callable[[Path], dict[str, Any]]

OPTIONS = [
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M,refcount_bits=64",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "extended_l2=on",
    "data_file=data.raw,data_file_raw=on",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_info_is_qemus(options: str, qemu_img: Run, qemu_info: Info, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", options, str(path), "10M")
    with qcowkit.open(path) as image:
        assert image.info().to_dict() == qemu_info(path)


def test_an_encrypted_image_tells_how(qemu_img: Run, qemu_info: Info, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1"
    qemu_img("create", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", options, str(path), "1M")
    with qcowkit.open(path) as image:
        info = image.info().to_dict()
    assert info == qemu_info(path)
    assert info["format-specific"]["data"]["encrypt"]["format"] == "luks"


def test_snapshots_bitmaps_and_a_missing_backing_file_are_told(qemu_img: Run, qemu_info: Info, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2", str(path), "10M")
    with qcowkit.open(path) as image:
        assert image.info().to_dict() == qemu_info(path)
    qemu_img("create", "-f", "qcow2", str(path), "10M")
    qemu_img("snapshot", "-c", "before", str(path))
    qemu_img("bitmap", "--add", str(path), "backup")
    with qcowkit.open(path) as image:
        info = image.info().to_dict()
    assert info == qemu_info(path)
    assert info["snapshots"][0]["name"] == "before"
    assert info["format-specific"]["data"]["bitmaps"][0]["name"] == "backup"


def test_info_is_what_the_command_line_prints(disk: Path, qcowkit_program: Run) -> None:
    with qcowkit.open(disk) as image:
        assert image.info().to_dict() == json.loads(qcowkit_program("info", "--output=json", str(disk)))


def test_looking_changes_nothing(disk: Path) -> None:
    before = disk.read_bytes()
    with qcowkit.open(disk) as image:
        image.info()
    assert disk.read_bytes() == before


def test_paths_of_every_kind(disk: Path) -> None:
    for path in (disk, str(disk), os.fspath(disk), pathlib.PurePosixPath(disk)):
        with qcowkit.open(path) as image:
            assert image.path == str(disk)


def test_an_image_closes_once_and_refuses_after(disk: Path) -> None:
    image = qcowkit.open(disk)
    assert not image.closed
    assert repr(image) == f"<qcowkit.Image {str(disk)!r}>"
    image.close()
    image.close()
    assert image.closed
    assert repr(image) == f"<qcowkit.Image {str(disk)!r} closed>"
    with pytest.raises(ValueError, match="closed"):
        image.info()
    with pytest.raises(ValueError, match="closed"), image:
        pass


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        qcowkit.open(tmp_path / "gone.qcow2")
    assert caught.value.filename == str(tmp_path / "gone.qcow2")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        qcowkit.open(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"not an image at all" * 100)
    with pytest.raises(NotQcow2Error) as caught:
        qcowkit.open(path)
    assert caught.value.filename == str(path)
    assert "not a qcow2 image" in str(caught.value)


def test_a_broken_header_is_told_with_its_place(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(40)  # l1_table_offset, which must be aligned to a cluster
        file.write(struct.pack(">Q", 12345))
    with pytest.raises(CorruptImageError) as caught:
        qcowkit.open(disk)
    assert caught.value.structure is not None
    assert caught.value.code == "corrupt"


def test_an_unknown_feature_is_named(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(72)  # incompatible_features
        file.write(struct.pack(">Q", 1 << 40))
    with pytest.raises(UnsupportedError, match="40"):
        qcowkit.open(disk)


def test_an_image_in_use_is_refused(disk: Path) -> None:
    command = ["qemu-io", "-f", "qcow2", str(disk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("length\n")
        writer.stdin.flush()
        assert "64 MiB" in writer.stdout.readline()
        with pytest.raises(LockedError):
            qcowkit.open(disk)
        writer.stdin.write("quit\n")
        writer.stdin.flush()
    qcowkit.open(disk).close()


def test_threads_may_share_an_image(disk: Path) -> None:
    with qcowkit.open(disk) as image:
        expected = image.info().to_dict()
        seen: list[dict[str, Any]] = []
        threads = [threading.Thread(target=lambda: seen.append(image.info().to_dict())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [expected] * 8
