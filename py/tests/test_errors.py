"""The tree of exceptions: shape, messages, and that they survive a trip to another process."""

import errno
import inspect
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qcowkit import _qcowkit, errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.QcowError)]
LEAVES = [kind for kind in KINDS if kind is not errors.QcowError]


def test_every_code_of_the_core_has_exactly_one_exception() -> None:
    assert sorted(kind.code for kind in LEAVES) == sorted(_qcowkit.ERROR_CODES)


def test_all_names_are_exported() -> None:
    assert sorted(kind.__name__ for kind in KINDS) == errors.__all__


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_says_what_and_where(kind: type[errors.QcowError]) -> None:
    error = kind("the entry is odd", "disk.qcow2", structure="l2_table", host_offset=65536, index=3)
    assert isinstance(error, OSError)
    assert str(error) == "disk.qcow2: the entry is odd"
    assert error.filename == "disk.qcow2"
    assert isinstance(error.errno, int)
    assert (error.structure, error.host_offset, error.guest_offset, error.index) == ("l2_table", 65536, None, 3)


def test_without_a_file_the_message_stands_alone() -> None:
    assert str(errors.NotQcow2Error("no magic")) == "no magic"


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_everything(kind: type[errors.QcowError]) -> None:
    error = kind("what", "disk.qcow2", structure="header", guest_offset=1, depth=2)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.errno, copy.filename) == (str(error), error.errno, error.filename)
    assert (copy.structure, copy.host_offset, copy.guest_offset, copy.depth) == ("header", None, 1, 2)


def test_wrong_arguments_are_value_errors_too() -> None:
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.OutOfRangeError, ValueError)


def test_what_the_system_refuses_is_pythons_own_exception() -> None:
    error = errors._raised("storage", "No such file or directory", "gone.qcow2", errno.ENOENT, {})
    assert isinstance(error, FileNotFoundError)
    assert error.filename == "gone.qcow2"


FULL = """
import contextlib, errno, os, random, sys, qcowkit
folder = sys.argv[1]
image = qcowkit.create(f"{folder}/full.qcow2", "64M")
try:
    image.write(0, random.Random(1).randbytes(16 << 20))
except qcowkit.errors.NoSpaceError as error:
    print(error.errno == errno.ENOSPC, error.filename == f"{folder}/full.qcow2", error.host_offset is not None)
# It is full still.
with contextlib.suppress(qcowkit.errors.NoSpaceError):
    image.close()
os.system(f"mount -o remount,ro {folder}")
try:
    qcowkit.open(f"{folder}/full.qcow2", "r+")
except OSError as error:
    print(type(error).__name__, error.errno == errno.EROFS)
"""


def test_a_host_that_is_full_or_read_only_is_told_as_such(tmp_path: Path) -> None:
    """On a file system of 4 MiB, in a mount namespace that ends with the process."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is missing")
    (tmp_path / "full.py").write_text(FULL)
    (tmp_path / "place").mkdir()
    inside = 'mount -t tmpfs -o size=4m none "$1" || exit 77; exec "$2" "$3" "$1"'
    names = [str(tmp_path / "place"), sys.executable, str(tmp_path / "full.py")]
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", inside, "sh", *names], check=False, capture_output=True, text=True
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("no right to mount")
    assert done.stdout == "True True True\nOSError True\n", done.stderr
