"""The shared suite of image operations: what core/tests/operations.rs replays in Rust and wasm/test in JavaScript."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import Run

import qcowkit

CASES: list[dict[str, Any]] = json.loads(
    Path(__file__).parents[2].joinpath("core", "tests", "data", "operations.json").read_text()
)


def pattern(length: int, byte: int) -> bytes:
    """What the suite writes: it differs from sector to sector."""
    wheel = bytes((byte + at * 7) & 0xFF for at in range(256)) * 2
    sectors = range(-(-length // 512))
    # 7 * 512 is a multiple of 256: every sector begins with the same number, one more for each sector before it.
    return b"".join(bytes((value + sector) & 0xFF for value in wheel) for sector in sectors)[:length]


DO: dict[str, Callable[[qcowkit.Image, Any], object]] = {
    "write": lambda image, to: image.write(to["offset"], pattern(to["length"], to["byte"])),
    "write_zeroes": lambda image, to: image.write_zeroes(to["offset"], to["length"], unmap=to["unmap"]),
    "discard": lambda image, to: image.discard(to["offset"], to["length"]),
    "create_snapshot": lambda image, name: image.create_snapshot(name),
    "apply_snapshot": lambda image, name: image.apply_snapshot(name),
    "delete_snapshot": lambda image, name: image.delete_snapshot(name),
    "resize": lambda image, size: image.resize(size),
}


def checksum(image: qcowkit.Image) -> int:
    return zlib.crc32(image.read())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_every_case_ends_as_the_model_says(case: dict[str, Any], tmp_path: Path, qemu_img: Run) -> None:
    options = dict(case["options"])
    policy = qcowkit.DiscardPolicy(
        allocation=options.pop("allocation", "qemu"),
        discard_no_unref=options.pop("unref", None) == "retain_unshared",
    )
    version: Literal[2, 3] = 2 if options.pop("compat", "1.1") == "0.10" else 3
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, case["size"], version=version, policy=policy, **options) as image:
        for operation in case["operations"]:
            if operation == "flush":
                image.flush()
                continue
            [(kind, what)] = operation.items()
            DO[kind](image, what)
        assert image.size == case["end_size"]
        assert checksum(image) == case["crc32"]
        for name, expected in case["snapshots"].items():
            with image.view(name) as view:
                assert checksum(view) == expected, name
        report = image.check()
        assert (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0)
    qemu_img("check", "-q", "-f", "qcow2", str(path))
    raw = tmp_path / "disk.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", str(path), str(raw))
    assert zlib.crc32(raw.read_bytes()) == case["crc32"]
