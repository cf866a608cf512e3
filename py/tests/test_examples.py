"""Every example in a docstring runs, in a folder of its own with the images that examples are about."""

from __future__ import annotations

import doctest
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


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_is_true(
    example: doctest.DocTest, qemu_img: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with qcowkit.create("disk.qcow2", 1 << 30) as image:
        image.write(HELLO, b"earlier")
        image.create_snapshot("before")
        image.write(HELLO, b"hello\0\0")
    with qcowkit.create("parted.qcow2", 1 << 20) as image:
        image.write(446, bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0, 64, 0, 0, 0, 0, 4, 0, 0]))
        image.write(510, b"\x55\xaa")
    example.globs = {"qcowkit": qcowkit, **vars(qcowkit)}
    failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed
    assert failed == 0
    for path in tmp_path.glob("*.qcow2"):
        qemu_img("check", str(path))


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


def public(holder: object) -> Iterator[tuple[str, object]]:
    for name, member in inspect.getmembers(holder):
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        yield name, member


def test_everything_public_is_documented() -> None:
    missing = [
        f"{kind.__name__}.{name}"
        for kind in (qcowkit.Image, qcowkit.GuestDisk, qcowkit.Partition, qcowkit.DiscardPolicy)
        for name, member in public(kind)
        if not inspect.getdoc(member)
    ]
    missing += [name for name in qcowkit.__all__ if not name.startswith("__") and not getattr(qcowkit, name).__doc__]
    assert missing == []


def test_every_method_of_an_image_has_an_example() -> None:
    missing = [
        name
        for name, member in public(qcowkit.Image)
        if inspect.isfunction(member) and ">>>" not in (inspect.getdoc(member) or "")
    ]
    assert missing == []
