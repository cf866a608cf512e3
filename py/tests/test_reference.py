"""The reference page has every public name, as the docstrings tell it; tables of large images are quick and small."""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

import qcowkit

ROOT = Path(__file__).parents[2]


def test_the_reference_is_of_these_docstrings() -> None:
    written = subprocess.run(
        [sys.executable, str(ROOT / "py" / "reference.py")], check=True, capture_output=True, text=True
    ).stdout
    kept = (ROOT / "docs" / "python-reference.md").read_text()
    assert written == kept, "python py/reference.py > docs/python-reference.md"


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "python-reference.md").read_text()
    modules = ("table", "reports", "lab", "plots", "policy", "errors")
    for module in [qcowkit, *(importlib.import_module(f"qcowkit.{name}") for name in modules)]:
        for name in module.__all__:
            if name not in modules:
                assert f"`{name}`" in page, f"{module.__name__}.{name}"
    for name in dir(qcowkit.Image):
        if not name.startswith("_"):
            assert f"`Image.{name}`" in page or f"`Handle.{name}`" in page, name


@pytest.mark.parametrize("preallocation", ["off", "metadata"])
def test_the_map_of_a_tebibyte(preallocation: Literal["off", "metadata"], tmp_path: Path) -> None:
    """Well under a second and a few hundred MB; generous, since other programs run here too."""
    path = tmp_path / "huge.qcow2"
    qcowkit.create(path, "1T", preallocation=preallocation).close()
    image_bytes = path.stat().st_size
    with qcowkit.open(path) as image:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        table = image.map()
        taken = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        clusters = image.clusters()
        of_the_file = time.monotonic() - start
    assert sum(clusters["length"]) >= image_bytes
    # Every cluster is counted: more work than the map, and a number for each of 16 million.
    assert of_the_file < 30
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) < 700_000
    assert sum(table["length"]) == 1 << 40
    assert taken < 5
    assert peak - before < 400_000
    path.unlink()
