"""An image against a `bytearray`: random calls of every kind, then QEMU's verdict."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import qcowkit

LARGEST = 1 << 20
SHAPES: list[dict[str, Any]] = [
    {"cluster_size": 512},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": 65536},
    {"cluster_size": 65536, "version": 2},
    {"cluster_size": 16384, "extended_l2": True},
]

offsets = st.one_of(
    st.integers(0, LARGEST),
    st.builds(lambda block, more: max(0, block * 4096 + more), st.integers(0, LARGEST // 4096), st.integers(-1, 1)),
)
lengths = st.one_of(st.integers(0, 3000), st.sampled_from([4096, 65536, 65537, 200_000]))


class ImageBesideBytes(RuleBasedStateMachine):
    """What the guest sees, and what it saw when each snapshot was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "disk.qcow2"
        self.snapshots: dict[str, bytes] = {}

    @initialize(
        shape=st.sampled_from(SHAPES),
        policy=st.sampled_from(["unmap", "no-unref", "ignore"]),
        size=st.integers(1, LARGEST // 512),
        options=st.sampled_from([{}, {"allocation": "fill-holes", "quarantine": 0}, {"allocation": "near"}]),
    )
    def create(self, shape: dict[str, Any], policy: str, size: int, options: dict[str, Any]) -> None:
        self.policy, self.options = policy, options
        self.disk = bytearray(size * 512)
        self.image = qcowkit.create(self.path, len(self.disk), policy=policy, options=options, **shape)

    def inside(self, offset: int, length: int) -> tuple[int, int]:
        start = offset % len(self.disk)
        return start, min(start + length, len(self.disk))

    @rule(offset=offsets, length=lengths, seed=st.integers(0, 255))
    def write(self, offset: int, length: int, seed: int) -> None:
        start, end = self.inside(offset, length)
        data = random.Random(seed).randbytes(end - start)
        self.image.write(start, data)
        self.disk[start:end] = data

    @rule(offset=offsets, length=lengths, unmap=st.booleans())
    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        start, end = self.inside(offset, length)
        self.image.write_zeroes(start, end - start, unmap=unmap)
        self.disk[start:end] = bytes(end - start)

    @rule(offset=offsets, length=lengths, once=st.sampled_from([None, "unmap", "no-unref", "ignore"]))
    def discard(self, offset: int, length: int, once: str | None) -> None:
        start, end = self.inside(offset, length)
        self.image.discard(start, end - start, policy=once)
        if (once or self.policy) == "ignore":
            return
        cluster = self.image.cluster_size
        first = -(-start // cluster) * cluster
        last = end if end == len(self.disk) else end - end % cluster
        if first < last:
            self.disk[first:last] = bytes(last - first)

    @rule(offset=offsets, length=lengths)
    def read(self, offset: int, length: int) -> None:
        start, end = self.inside(offset, length)
        assert self.image.read(start, end - start) == self.disk[start:end]

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule(size=st.integers(1, LARGEST // 512))
    def resize(self, size: int) -> None:
        self.image.resize(size * 512, shrink=True)
        del self.disk[size * 512 :]
        self.disk.extend(bytes(size * 512 - len(self.disk)))

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def take_snapshot(self) -> None:
        self.snapshots[self.image.create_snapshot("s").id] = bytes(self.disk)

    @precondition(lambda self: self.snapshots)
    @rule(choice=st.integers(0, 3))
    def apply_snapshot(self, choice: int) -> None:
        name = sorted(self.snapshots)[choice % len(self.snapshots)]
        self.image.apply_snapshot(name)
        self.disk = bytearray(self.snapshots[name])

    @precondition(lambda self: self.snapshots)
    @rule(choice=st.integers(0, 3))
    def delete_snapshot(self, choice: int) -> None:
        name = sorted(self.snapshots)[choice % len(self.snapshots)]
        self.image.delete_snapshot(next(one for one in self.image.snapshots if one.id == name))
        del self.snapshots[name]

    @precondition(lambda self: self.snapshots)
    @rule(choice=st.integers(0, 3))
    def view(self, choice: int) -> None:
        name = sorted(self.snapshots)[choice % len(self.snapshots)]
        with self.image.view(name) as view:
            assert view.read() == self.snapshots[name]

    @rule(bits=st.sampled_from([16, 32]))
    def amend(self, bits: int) -> None:
        if self.image.info()["format-specific"]["data"]["compat"] != "0.10":
            self.image.amend(refcount_bits=bits)

    @rule()
    def reopen(self) -> None:
        self.image.close()
        self.image = qcowkit.open(self.path, "r+", policy=self.policy, options=self.options)

    @invariant()
    def sizes_agree(self) -> None:
        if hasattr(self, "image"):
            assert self.image.size == len(self.disk)

    def teardown(self) -> None:
        try:
            if hasattr(self, "image"):
                assert self.image.read() == self.disk
                self.image.close()
                self.ask_qemu()
        finally:
            if hasattr(self, "image"):
                self.image.close()
            shutil.rmtree(self.folder)

    def ask_qemu(self) -> None:
        if shutil.which("qemu-img") is None:
            pytest.skip("qemu-img is missing")
        raw = self.folder / "raw"
        raw.write_bytes(self.disk)
        for command in (
            ["check", "-f", "qcow2", str(self.path)],
            ["compare", "-f", "qcow2", "-F", "raw", str(self.path), str(raw)],
        ):
            done = subprocess.run(["qemu-img", *command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        for name, contents in self.snapshots.items():
            with qcowkit.open(self.path, snapshot=name) as image:
                assert image.read() == contents


ImageBesideBytes.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestImage = ImageBesideBytes.TestCase
