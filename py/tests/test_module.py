"""What the package says of itself."""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import metadata

import qcowkit


def test_the_version_is_the_workspaces() -> None:
    assert qcowkit.__version__.count(".") == 2
    assert qcowkit.__version__ == metadata("qcowkit")["Version"]


def test_free_threading_is_declared_and_kept() -> None:
    said = metadata("qcowkit").get_all("Classifier") or []
    assert [line for line in said if line.startswith("Programming Language :: Python :: Free Threading")]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        # A module that does not declare it has the interpreter take its lock up again.
        assert not sys._is_gil_enabled()  # type: ignore[attr-defined,unused-ignore]
