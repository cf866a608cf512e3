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
