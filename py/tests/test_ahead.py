"""Reading in order: pieces that were read before they were asked for are those that a read of now gives."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qcowkit
from qcowkit.errors import CorruptImageError

MIB = 1 << 20
SIZE = 6 * MIB
PIECES = [4096, 16384, 20_000, 65536, 131_072, 250_000, MIB]


def noise(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def plain(path: Path, **options: Any) -> bytes:
    """An image with data, zeros and holes, and what its disk is."""
    disk = bytearray(SIZE)
    with qcowkit.create(path, SIZE, **options) as image:
        for start in range(0, SIZE, 384 << 10):
            part = noise(256 << 10, start)
            disk[start : start + len(part)] = part
            image.write(start, part)
        image.write_zeroes(MIB, 100_000)
        disk[MIB : MIB + 100_000] = bytes(100_000)
    return bytes(disk)


def in_order(image: qcowkit.Image, piece: int) -> bytes:
    return b"".join(image.read(at, min(piece, SIZE - at)) for at in range(0, SIZE, piece))


@pytest.mark.parametrize("piece", PIECES)
def test_reads_in_order_give_what_one_read_gives(piece: int, tmp_path: Path) -> None:
    path, packed, top = tmp_path / "disk.qcow2", tmp_path / "packed.qcow2", tmp_path / "top.qcow2"
    disk = plain(path)
    qcowkit.convert(path, packed, compress=True)
    raw, data = tmp_path / "disk.raw", tmp_path / "data.qcow2"
    raw.write_bytes(disk)
    qcowkit.create(top, SIZE, backing=raw, backing_format="raw").close()
    plain(data, data_file="disk.data")
    sources: list[tuple[Any, dict[str, Any]]] = [
        (path, {}),
        (path, {"lock": False}),
        (packed, {}),
        (path.read_bytes(), {}),
        (io.BytesIO(path.read_bytes()), {}),
        (top, {"backing": "same-dir"}),
        (data, {"backing": "same-dir"}),
        (path, {"mode": "scratch"}),
        (path, {"mode": "r+"}),
    ]
    for source, how in sources:
        with qcowkit.open(source, **how) as image:
            assert in_order(image, piece) == disk, (source, how)
            assert in_order(image, piece) == disk, "again, after the end"


def test_random_reads_in_between_get_their_own(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    chance = random.Random(5)
    with qcowkit.open(path) as image:
        at, piece = 0, 65536
        for _ in range(600):
            if chance.random() < 0.1:
                at, piece = chance.randrange(SIZE), chance.choice(PIECES)
            at = 0 if at >= SIZE else at
            length = min(piece, SIZE - at)
            assert image.read(at, length) == disk[at : at + length]
            at += length


@pytest.mark.parametrize("locked", [True, False])
def test_only_what_is_locked_is_read_beforehand(locked: bool, tmp_path: Path) -> None:
    """Who changes a file without asking for its lock is not seen for as much as was read; without lock, always."""
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    with qcowkit.open(path, lock=locked) as image:
        for at in range(0, 3 * 65536, 65536):
            assert image.read(at, 65536) == disk[at : at + 65536]
        place = next(row.host_offset for row in image.map(3 * 65536, 4 * 65536))
        file = os.open(path, os.O_RDWR)
        os.pwrite(file, b"x" * 65536, place)
        os.close(file)
        seen = image.read(3 * 65536, 65536)
        assert seen == (disk[3 * 65536 : 4 * 65536] if locked else b"x" * 65536)
        # Elsewhere, and there again: nothing is kept.
        assert image.read(0, 65536) == disk[:65536]
        assert image.read(3 * 65536, 65536) == b"x" * 65536


@pytest.mark.parametrize("mode", ["r+", "scratch"])
def test_what_was_written_meanwhile_is_read(mode: Any, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = bytearray(plain(path))
    with qcowkit.open(path, mode) as image:
        for at in range(0, SIZE, 32768):
            if at + 65536 <= SIZE:
                new = noise(32768, at)
                image.write(at + 32768, new)
                disk[at + 32768 : at + 65536] = new
            assert image.read(at, 32768) == disk[at : at + 32768]


def test_a_view_is_read_while_the_image_is_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    with qcowkit.open(path, "r+") as image:
        image.create_snapshot("then")
        with image.view("then") as view:
            for at in range(0, SIZE, 32768):
                image.write(at, b"n" * 65536 if at + 65536 <= SIZE else b"")
                assert view.read(at, 32768) == disk[at : at + 32768]


def test_damage_is_told_to_who_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    with qcowkit.open(path) as image:
        info = image.info()
        assert info["cluster-size"] == 65536
        first = image.map(0, 65536)[0].host_offset
    data = bytearray(path.read_bytes())
    entry = data.index((first | 1 << 63).to_bytes(8))
    broken = 20
    data[entry + 8 * broken : entry + 8 * broken + 8] = (1 << 63 | 0x1234).to_bytes(8)
    with qcowkit.open(bytes(data)) as image:
        for at in range(0, broken * 65536, 32768):
            assert image.read(at, 32768) == disk[at : at + 32768]
        for at in (0, 32768):
            with pytest.raises(CorruptImageError) as caught:
                image.read(broken * 65536 + at, 32768)
            assert caught.value.structure == "l2_table"
        behind = (broken + 1) * 65536
        for at in range(behind, SIZE, 32768):
            assert image.read(at, 32768) == disk[at : at + 32768]


def test_nothing_is_given_after_close(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    plain(path)
    image = qcowkit.open(path)
    for at in range(0, 5 * 65536, 65536):
        image.read(at, 65536)
    image.close()
    with pytest.raises(ValueError, match="closed"):
        image.read(5 * 65536, 65536)


def test_many_threads_read_one_image_in_order(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    wrong: list[int] = []
    with qcowkit.open(path) as image:

        def read(piece: int) -> None:
            for _ in range(5):
                if in_order(image, piece) != disk:
                    wrong.append(piece)

        threads = [threading.Thread(target=read, args=(piece,)) for piece in (65536, 65536, 32768, 131_072)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_fork_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    plain(path)
    script = (
        "import os, sys, qcowkit\n"
        "image = qcowkit.open(sys.argv[1])\n"
        "whole = image.read()\n"
        "for at in range(0, 7 * 65536, 65536): image.read(at, 65536)\n"
        "child = os.fork()\n"
        "right = all(image.read(at, 65536) == whole[at:at + 65536] for at in range(7 * 65536, 90 * 65536, 65536))\n"
        "if child == 0:\n"
        "    os._exit(0 if right else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not right)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)


READERS: list[Callable[[qcowkit.Image, int, int], bytes]] = [
    lambda image, at, length: image.read(at, length),
    lambda image, at, length: image.read(offset=at, length=length),
]


@pytest.mark.parametrize("read", READERS)
def test_pieces_belong_to_who_got_them(read: Callable[[qcowkit.Image, int, int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    disk = plain(path)
    with qcowkit.open(path) as image:
        kept = [read(image, at, 65536) for at in range(0, SIZE, 65536)]
    assert b"".join(kept) == disk
    assert len({id(piece) for piece in kept}) == len(kept)
