"""qcowkit beside pyqcow (libqcow) and dissect.hypervisor, in one run on one machine.

`cargo xtask bench python` runs it on an optimised wheel; with `--write FILE` it writes the page that docs has of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyqcow
from dissect.hypervisor.disk.c_qcow2 import QCow2SubclusterType
from dissect.hypervisor.disk.qcow2 import QCow2

import qcowkit

MIB = 1 << 20
ROUNDS = 5
DATA = 256 * MIB
TEXT = 64 * MIB
#: Tables of 16 GiB: a quarter of a million clusters, every second one of them allocated, in no order.
SCATTERED = 16 << 30

#: The same bytes out of a raw file, which no library can be much quicker than on one thread.
FLOOR = "os.pread"

Job = Callable[[], Any]


@dataclass
class Case:
    """The same job for each library that can do it, and what each should give."""

    name: str
    wanted: float
    jobs: dict[str, Job]
    right: Any


@dataclass
class Outcome:
    """Seconds of each library, and those that gave something else than the truth: slow is one thing, wrong another."""

    case: Case
    seconds: dict[str, float]
    wrong: set[str]

    def ratio(self, library: str) -> float:
        """How many times as long it takes as qcowkit."""
        return self.seconds[library] / self.seconds["qcowkit"]


def main() -> int:
    """Measures all, prints it, and says whether everything is as fast as promised."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--write", type=Path, help="the page to write")
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcomes = [measure(case) for case in cases(make(Path(name)))]
    page = "\n".join(report(outcomes))
    print(page)
    if wanted.write:
        wanted.write.write_text(page + "\n")
    slow = [
        (outcome.case.name, library)
        for outcome in outcomes
        for library in outcome.seconds
        if library not in ("qcowkit", FLOOR) and outcome.ratio(library) < outcome.case.wanted
    ]
    for name, library in slow:
        print(f"slower than promised: {name}, beside {library}", file=sys.stderr)
    return 1 if slow else 0


def make(folder: Path) -> dict[str, Path]:
    """The images."""
    chance = random.Random(1)
    plain, packed, scattered = folder / "plain.qcow2", folder / "packed.qcow2", folder / "scattered.qcow2"
    with qcowkit.create(plain, DATA) as image:
        for offset in range(0, DATA, 8 * MIB):
            image.write(offset, chance.randbytes(8 * MIB))
    words = [chance.randbytes(6).hex() for _ in range(2000)]
    text = folder / "text.qcow2"
    with qcowkit.create(text, TEXT) as image:
        for offset in range(0, TEXT, MIB):
            image.write(offset, " ".join(chance.choices(words, k=MIB // 12)).encode()[:MIB].ljust(MIB))
    qcowkit.convert(text, packed, compress=True)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", str(scattered), str(SCATTERED)]
    subprocess.run(command, check=True)
    # Without barriers, and a byte for each cluster: only the tables are looked at.
    clusters = list(range(0, SCATTERED // 65536, 2))
    chance.shuffle(clusters)
    with qcowkit.open(scattered, "scratch") as image:
        for cluster in clusters:
            image.write(cluster * 65536, b"x")
        image.save_as(scattered, overwrite=True)
    return {"plain": plain, "packed": packed, "scattered": scattered}


def cases(images: dict[str, Path]) -> list[Case]:
    """What is measured."""
    plain, packed, scattered = images["plain"], images["packed"], images["scattered"]
    allocated = SCATTERED // 65536 // 2
    return [
        reading("sequential reads of 1 MiB", plain, DATA, MIB),
        reading("sequential reads of 64 KiB", plain, DATA, 65536),
        reading("compressed clusters, reads of 1 MiB", packed, TEXT, MIB),
        reading("compressed clusters, reads of 64 KiB", packed, TEXT, 65536),
        Case(
            "map: all runs of the disk",
            10,
            {"qcowkit": lambda: our_map(scattered), "dissect": lambda: dissect_map(scattered)},
            allocated * 65536,
        ),
        Case(
            "tables: the entry of each cluster",
            10,
            {"qcowkit": lambda: our_entries(scattered), "dissect": lambda: dissect_entries(scattered)},
            allocated,
        ),
    ]


def reading(name: str, path: Path, size: int, piece: int) -> Case:
    """The whole disk is read in pieces; a sample of each is kept and compared with what QEMU reads."""
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
    with raw.open("rb") as file:
        right = sample(file.read(piece) for _ in range(0, size, piece))

    def copied() -> bytes:
        file = os.open(raw, os.O_RDONLY)
        taken = sample(os.pread(file, piece, offset) for offset in range(0, size, piece))
        os.close(file)
        return taken

    def ours() -> bytes:
        with qcowkit.open(path) as image:
            return sample(image.read(offset, piece) for offset in range(0, size, piece))

    def libqcow() -> bytes:
        file = pyqcow.file()
        file.open(str(path))
        taken = sample(file.read_buffer_at_offset(piece, offset) for offset in range(0, size, piece))
        file.close()
        return taken

    def dissect() -> bytes:
        stream = QCow2(path).open()
        return sample(stream.read(piece) for _ in range(0, size, piece))

    return Case(name, 3, {"qcowkit": ours, "pyqcow": libqcow, "dissect": dissect, FLOOR: copied}, right)


def sample(pieces: Any) -> bytes:
    return bytes(piece[len(piece) // 3] for piece in pieces)


def our_map(path: Path) -> int:
    with qcowkit.open(path) as image:
        table = image.map()
        lengths, kinds = table["length"].to_list(), table["kind"].to_list()
        return sum(length for length, kind in zip(lengths, kinds, strict=True) if kind == "data")


def dissect_map(path: Path) -> int:
    disk = QCow2(path)
    runs = disk.open()._yield_runs(0, disk.size)
    return sum(count for kind, _, _, count in runs if kind == QCow2SubclusterType.QCOW2_SUBCLUSTER_NORMAL)


def our_entries(path: Path) -> int:
    with qcowkit.open(path) as image:
        places = image.map(merge=False)["host_offset"]
        return len(places) - places.null_count


def dissect_entries(path: Path) -> int:
    disk = QCow2(path)
    count = 0
    for offset in disk.l1_table:
        table = disk.l2_table(offset & 0x00FFFFFFFFFFFE00)
        for index in range(disk.l2_size):
            count += table.entry(index) != 0
    return count


def measure(case: Case) -> Outcome:
    """Libraries take turns, so that a busy moment of the machine hits all; the median of each counts."""
    seconds: dict[str, list[float]] = {library: [] for library in case.jobs}
    wrong = set()
    for _ in range(ROUNDS):
        for library, job in case.jobs.items():
            gc.collect()
            begun = time.perf_counter()
            given = job()
            seconds[library].append(time.perf_counter() - begun)
            if given != case.right:
                wrong.add(library)
    if "qcowkit" in wrong:
        raise AssertionError(f"{case.name}: qcowkit gives something else than QEMU")
    return Outcome(case, {library: sorted(times)[len(times) // 2] for library, times in seconds.items()}, wrong)


def report(outcomes: list[Outcome]) -> list[str]:
    """The page."""
    lines = [
        "# Benchmarks: Python",
        "",
        f"qcowkit {qcowkit.__version__} beside libqcow-python {version('libqcow-python')} (pyqcow) and "
        f"dissect.hypervisor {version('dissect.hypervisor')}, Python {platform.python_version()}, in one run "
        f"on one machine (`cargo xtask bench python`). Medians of {ROUNDS} rounds in which the libraries take turns; "
        "the files are in the page cache. Opening is part of each job.",
        "",
        "| job | qcowkit | pyqcow | dissect | promised | os.pread |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        cells = [f"{outcome.seconds['qcowkit'] * 1000:.1f} ms"]
        for library in ("pyqcow", "dissect"):
            if library in outcome.seconds:
                note = ", wrong bytes" if library in outcome.wrong else ""
                cells.append(f"{outcome.seconds[library] * 1000:.1f} ms, **{outcome.ratio(library):.1f}x**{note}")
            else:
                cells.append("cannot")
        floor = f"{outcome.seconds[FLOOR] * 1000:.1f} ms" if FLOOR in outcome.seconds else ""
        lines.append(f"| {outcome.case.name} | {' | '.join(cells)} | {outcome.case.wanted:g}x | {floor} |")
    lines += [
        "",
        f"Sequential reads: {DATA // MIB} MiB of noise. Compressed: {TEXT // MIB} MiB of words, zlib, 64 KiB clusters. "
        f"Map and tables: a disk of {SCATTERED >> 30} GiB of which every second cluster of 64 KiB is allocated, in no "
        "order, so that no two entries make one run. Wrong bytes: what the library returned is not what QEMU reads.",
        "",
        "os.pread: the same bytes read from a raw file by Python itself, on one thread: hardly more than the copy out "
        f"of the page cache. This machine has {os.cpu_count()} cores; qcowkit shares out reads of 256 KiB or more, and "
        "the unpacking of compressed clusters that are read in order; of shorter reads in order, several at once. All "
        "libraries return new bytes from each read: pyqcow has no call that fills a buffer.",
    ]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
