"""One image and many threads; and Ctrl-C."""

from __future__ import annotations

import gc
import io
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import qcowkit

Same = Callable[[Path, bytes], None]
THREADS = 8
PART = 1 << 20


def work(image: qcowkit.Image, number: int) -> bytes:
    """Changes a part of the disk of its own in all ways, and gives what that should hold."""
    chance = random.Random(number)
    start = number * PART
    part = bytearray(PART)
    for turn in range(60):
        offset = chance.randrange(PART)
        length = min(chance.randrange(100_000), PART - offset)
        kind = turn % 5
        if kind < 2:
            data = chance.randbytes(length)
            image.write(start + offset, data)
            part[offset : offset + length] = data
        elif kind == 2:
            image.write_zeroes(start + offset, length)
            part[offset : offset + length] = bytes(length)
        elif kind == 3:
            first = -(-offset // 65536) * 65536
            last = (offset + length) // 65536 * 65536
            image.discard(start + offset, length, policy=chance.choice([None, "no-unref"]))
            if first < last:
                part[first:last] = bytes(last - first)
        else:
            assert image.read(start + offset, length) == part[offset : offset + length]
            if turn % 3 == 0:
                image.flush()
    assert image.read(start, PART) == part
    return bytes(part)


@pytest.mark.parametrize("kind", ["file", "object", "scratch"])
def test_many_threads_change_one_image(kind: str, tmp_path: Path, same: Same) -> None:
    path = tmp_path / "disk.qcow2"
    target = io.BytesIO() if kind == "object" else path
    image = qcowkit.create(target, THREADS * PART)
    if kind == "scratch":
        image.close()
        image = qcowkit.open(path, "scratch")
    stop = threading.Event()

    def look() -> int:
        count = 0
        while not stop.is_set():
            image.info()
            assert image.size == THREADS * PART
            count += 1
        return count

    with ThreadPoolExecutor(THREADS + 1) as pool:
        looks = pool.submit(look)
        parts = list(pool.map(lambda number: work(image, number), range(THREADS)))
        stop.set()
        assert looks.result() > 0
    if kind == "scratch":
        image.save_as(path, overwrite=True)
    image.close()
    if isinstance(target, io.BytesIO):
        path.write_bytes(target.getvalue())
    same(path, b"".join(parts))


def test_long_reads_of_many_threads_help_one_another(tmp_path: Path) -> None:
    """Long reads are shared out to helpers, and compressed clusters unpacked ahead; a fork has no helpers."""
    words = " ".join(random.Random(3).choices(["alpha", "beta", "gamma", "delta"], k=1 << 20)).encode()[: 4 << 20]
    path, packed = tmp_path / "disk.qcow2", tmp_path / "packed.qcow2"
    with qcowkit.create(path, len(words)) as image:
        image.write(0, words)
        image.convert(packed, compress=True)

    def read(image: qcowkit.Image, number: int) -> bool:
        step = [len(words), 1 << 20, 65536, 40_000][number % 4]
        buffer = bytearray(step)
        for offset in range(0, len(words), step):
            expected = words[offset : offset + step]
            view = memoryview(buffer)[: len(expected)]
            image.readinto(offset, view)
            if image.read(offset, len(expected)) != expected or view != expected:
                return False
        return True

    for source in (path, packed, packed.read_bytes(), io.BytesIO(packed.read_bytes())):
        with qcowkit.open(source) as image, ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(lambda number, image=image: read(image, number), range(2 * THREADS)))
    script = (
        "import os, sys, qcowkit\n"
        "image = qcowkit.open(sys.argv[1])\n"
        "whole = image.read()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if image.read() == whole else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    for source in (path, packed):
        subprocess.run([sys.executable, "-c", script, str(source)], check=True, timeout=60)


def test_closing_while_others_read(disk: Path) -> None:
    image = qcowkit.open(disk, "r+")
    image.write(0, b"x" * (1 << 20))
    started = threading.Barrier(5)

    def read() -> bool:
        started.wait()
        try:
            while image.read(0, 1 << 20) == b"x" * (1 << 20):
                pass
        except ValueError as error:
            return "closed" in str(error)
        return False

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        started.wait()
        image.close()
        assert all(reader.result() for reader in readers)


def test_other_threads_go_on_while_an_image_works(disk: Path) -> None:
    """A file object that waits for another thread, which would never come if the call held the GIL."""
    entered, leave = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        slow = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.slow:
                entered.set()
                assert leave.wait(60)
            return super().read(size)

    with qcowkit.open(disk, "r+") as image:
        image.write(0, b"slow")
    source = Slow(disk.read_bytes())
    with qcowkit.open(source) as image, ThreadPoolExecutor(1) as pool:
        source.slow = True
        reading = pool.submit(image.read, 0, 4)
        assert entered.wait(60)
        assert image.size == 64 << 20  # another call on the same image, while the first one waits
        leave.set()
        assert reading.result() == b"slow"


@contextmanager
def interrupted_after(event: threading.Event) -> Iterator[None]:
    """Sends Ctrl-C to this thread once the event is set, and expects it to come out."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def send() -> None:
        event.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        event.set()
        sender.join()
        signal.signal(signal.SIGINT, previous)


def started_soon() -> threading.Event:
    event = threading.Event()
    threading.Timer(0.3, event.set).start()
    return event


def test_ctrl_c_stops_a_long_change_and_leaves_a_sound_image(tmp_path: Path, same: Same) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, 64 << 40, cluster_size="64k") as image:
        image.write(0, b"first")
        # Each GiB of these zeros is an entry for each of 16,384 clusters: hours for all of them.
        with interrupted_after(started_soon()):
            image.write_zeroes(1 << 30, (64 << 40) - (1 << 30), unmap=False)
        assert image.read(0, 5) == b"first"
        image.write(0, b"still")
        image.resize(1 << 20, shrink=True)
    same(path, b"still".ljust(1 << 20, b"\0"))


def test_ctrl_c_stops_a_long_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, 64 << 40) as image:
        file = image.disk()
        buffer = bytearray(256 << 20)
        with interrupted_after(started_soon()):
            while True:
                file.seek(0)
                file.readinto(buffer)
        assert image.read(0, 4) == bytes(4)


def test_ctrl_c_stops_a_conversion_and_takes_the_target_away(tmp_path: Path) -> None:
    path, target = tmp_path / "disk.qcow2", tmp_path / "target.qcow2"
    with qcowkit.create(path, 64 << 20) as image:
        image.write(0, random.Random(1).randbytes(64 << 20))
        event = threading.Event()
        # At this rate it takes a minute.
        with interrupted_after(event):
            image.convert(target, rate=1 << 20, progress=lambda done, total: event.set())
        assert not target.exists()
        assert image.read(0, 16) == random.Random(1).randbytes(64 << 20)[:16]


def chain(tmp_path: Path) -> tuple[Path, bytes]:
    """An image of 64 MiB over another, that is a raw file."""
    data = random.Random(2).randbytes(64 << 20)
    (tmp_path / "base.raw").write_bytes(bytes(len(data)))
    (tmp_path / "other.raw").write_bytes(b"x" * len(data))
    with qcowkit.create(tmp_path / "top.qcow2", backing="base.raw", backing_format="raw", cluster_size=4096) as image:
        image.write(0, data)
    return tmp_path / "top.qcow2", data


def test_ctrl_c_stops_a_commit_and_the_disk_is_what_it_was(tmp_path: Path, same: Same) -> None:
    path, data = chain(tmp_path)
    event = threading.Event()

    def slowly(done: int, total: int) -> None:
        event.set()
        time.sleep(0.05)

    with qcowkit.open(path, "r+", backing="follow") as image:
        with interrupted_after(event):
            while True:
                image.commit(progress=slowly)
        assert image.read() == data
        # Again, and to the end.
        image.commit()
        assert image.read() == data
    same(path, data)
    assert (tmp_path / "base.raw").read_bytes() == data


def test_ctrl_c_stops_a_rebase_and_the_disk_is_what_it_was(tmp_path: Path, same: Same) -> None:
    path, data = chain(tmp_path)
    event = threading.Event()

    def slowly(done: int, total: int) -> None:
        event.set()
        time.sleep(0.05)

    with qcowkit.open(path, "r+", backing="follow") as image:
        image.discard(0, len(data) // 2)
        expected = bytes(len(data) // 2) + data[len(data) // 2 :]
        backings = itertools.cycle(["other.raw", "base.raw"])
        with interrupted_after(event):
            while True:
                image.rebase(next(backings), "raw", progress=slowly)
        assert image.read() == expected
        image.rebase("other.raw", "raw")
        assert image.read() == expected
    same(path, expected)


def test_ctrl_c_in_a_file_object_comes_out(disk: Path) -> None:
    class Interrupted(io.BytesIO):
        interrupt = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.interrupt:
                raise KeyboardInterrupt
            return super().read(size)

    with qcowkit.open(disk, "r+") as image:
        image.write(0, b"x")
    source = Interrupted(disk.read_bytes())
    with qcowkit.open(source) as image:
        source.interrupt = True
        with pytest.raises(KeyboardInterrupt):
            image.read(0, 1)
        source.interrupt = False
        assert image.read(0, 1) == b"x"


def test_images_that_are_opened_and_closed_leave_nothing_behind(disk: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("no /proc")
    gc.collect()
    before = len(list(descriptors.iterdir()))
    for _ in range(50):
        with qcowkit.open(disk) as image:
            image.read(0, 10)
        with pytest.raises(qcowkit.errors.NotQcow2Error):
            qcowkit.open(__file__)
    assert len(list(descriptors.iterdir())) == before
