"""Images made by QEMU, the reference for what the format means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., str]


@pytest.fixture
def qemu_img(tmp_path: Path) -> Run:
    """Runs qemu-img in the test's folder and returns what it printed."""
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("qemu-img is missing")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    return run


@pytest.fixture
def qemu_io(tmp_path: Path) -> Run:
    """Runs commands of qemu-io on an image in the test's folder."""
    program = shutil.which("qemu-io")
    if program is None:
        pytest.skip("qemu-io is missing")

    def run(image: str, *commands: str) -> str:
        arguments = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            [program, "-d", "unmap", "-f", "qcow2", *arguments, image],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    return run


@pytest.fixture
def same(qemu_img: Run) -> Callable[[Path, bytes], None]:
    """Holds an image against what its disk should be: qemu-img finds it clean, and reads the same."""

    def check(image: Path, disk: bytes) -> None:
        qemu_img("check", "-f", "qcow2", str(image))
        raw = image.with_suffix(".expected")
        raw.write_bytes(disk)
        assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", str(image), str(raw))
        raw.unlink()

    return check


@pytest.fixture
def qcowkit_program(tmp_path: Path) -> Run:
    """Runs the command line in the test's folder and returns what it printed."""
    program = os.environ.get("QCOWKIT_PROGRAM")
    if program is None:
        pytest.skip("QCOWKIT_PROGRAM does not name the command line; cargo xtask test sets it")

    def run(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout

    return run


@pytest.fixture
def qemu_info(qemu_img: Run) -> Callable[[Path], dict[str, Any]]:
    """What qemu-img says of an image."""

    def info(path: Path) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(qemu_img("info", "--output=json", str(path)))
        return said

    return info


@pytest.fixture
def disk(qemu_img: Run, tmp_path: Path) -> Path:
    """A new, empty image of 64 MiB."""
    qemu_img("create", "-f", "qcow2", "disk.qcow2", "64M")
    return tmp_path / "disk.qcow2"
