"""Every example in a docstring runs, in a folder of its own with the images that examples are about."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Run

import qcowkit

HELLO = 1 << 20


def modules() -> Iterator[ModuleType]:
    yield qcowkit
    for found in pkgutil.iter_modules(qcowkit.__path__):
        if found.name != "_qcowkit":
            yield importlib.import_module(f"qcowkit.{found.name}")


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in modules() for test in finder.find(module) if test.examples]
    # What a package exports is found in the module that defines it, too.
    return list({(test.filename, test.lineno): test for test in found}.values())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The images that examples are about."""
    folder = tmp_path_factory.mktemp("examples")
    with qcowkit.create(folder / "disk.qcow2", 1 << 30) as image:
        image.write(HELLO, b"earlier")
        image.create_snapshot("before")
        image.write(HELLO, b"hello\0\0")
    with qcowkit.create(folder / "parted.qcow2", 1 << 20) as image:
        image.write(446, bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0, 64, 0, 0, 0, 0, 4, 0, 0]))
        image.write(510, b"\x55\xaa")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_is_true(
    example: doctest.DocTest,
    images: dict[str, bytes],
    qemu_img: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in images.items():
        Path(name).write_bytes(content)
    example.globs = {"qcowkit": qcowkit, **vars(qcowkit)}
    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed
    assert failed == 0
    for path in tmp_path.glob("*.qcow2"):
        if path.read_bytes() not in (*images.values(), b""):
            if qcowkit.probe(path).get("encrypted"):
                # QEMU would ask for the key.
                assert qcowkit.check(path).ok
            else:
                qemu_img("check", "-f", "qcow2", str(path))


def test_the_readme_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert capsys.readouterr().out == "b'only in memory' 10737418240\nb'hello'\n"


def public() -> Iterator[tuple[str, object]]:
    """Every public class and function, and every public method and property of the classes, by its name."""
    seen = set()
    names = ("table", "reports", "lab", "plots", "policy", "errors")
    for module in (qcowkit, *(importlib.import_module(f"qcowkit.{name}") for name in names)):
        for name in module.__all__:
            member = getattr(module, name)
            if not (inspect.isclass(member) or inspect.isfunction(member)) or member in seen:
                continue
            seen.add(member)
            yield name, member
            if inspect.isclass(member):
                yield from methods(member)


def methods(kind: type) -> Iterator[tuple[str, object]]:
    for name, member in inspect.getmembers_static(kind):
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        documented = inspect.isfunction(function) or isinstance(function, (property, functools.cached_property))
        if not name.startswith("_") and documented:
            yield f"{kind.__name__}.{name}", function


def test_everything_public_has_an_example() -> None:
    found = dict(public())
    assert {"Image.read", "GuestDisk.size", "CheckReport.findings", "Trace.load", "QcowError"} <= found.keys()
    # What has none of its own says what it inherits.
    missing = [name for name, member in found.items() if ">>>" not in (inspect.getdoc(member) or "")]
    assert missing == []
