"""Writes docs/python-reference.md from the docstrings: `python py/reference.py > docs/python-reference.md`.

Everything in `qcowkit.__all__` and in that of its public modules is there; a test holds the page against it.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import qcowkit

#: The modules in the order of the page, and the names of `qcowkit` itself first.
MODULES = (
    "qcowkit",
    "qcowkit.table",
    "qcowkit.reports",
    "qcowkit.lab",
    "qcowkit.plots",
    "qcowkit.policy",
    "qcowkit.errors",
)
HEAD = """# Reference of the Python package

Made from the docstrings by `py/reference.py`; the guide is [python.md](python.md). Offsets and lengths are in bytes.
Examples run in a folder with `disk.qcow2`: 1 GiB, with a few bytes at 1 MiB and a snapshot `before`.
"""
SECTIONS = ("Args", "Raises", "Returns")


class Written:
    """An annotation as it was written."""

    def __init__(self, text: object) -> None:
        self.text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self.text


def page() -> str:
    """The page."""
    parts, seen = [HEAD], set()
    for name in MODULES:
        module = importlib.import_module(name)
        title = "The package" if name == "qcowkit" else f"Module `{name}`"
        parts.append(f"## {title}\n")
        if name != "qcowkit":
            parts.append(text(module))
        for public in module.__all__:
            value = getattr(module, public)
            if inspect.ismodule(value) or id(value) in seen:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                seen.add(id(value))
            parts += [f"### `{public}`\n", *told(value)]
    return "\n".join(part.rstrip() + "\n" for part in parts if part.strip())


def told(value: Any) -> Iterator[str]:
    """What is told of a class, a function or a value."""
    if inspect.isfunction(value):
        yield signature(value.__name__, value)
        yield text(value)
    elif inspect.isclass(value):
        bases = ", ".join(
            f"`{base.__name__}`"
            for base in value.__bases__
            if base.__module__.startswith("qcowkit.") and base.__module__ != "qcowkit._qcowkit"
        )
        yield (
            f"Below {bases}.\n" if bases and not any(base.__name__.startswith("_") for base in value.__bases__) else ""
        )
        yield text(value)
        yield fields(value)
        for name, member in members(value):
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            function = getattr(function, "func", function)
            is_property = isinstance(member, property) or type(member).__name__ == "cached_property"
            yield f"#### `{value.__name__}.{name}`\n"
            yield "" if is_property else signature(name, function)
            yield text(function)
    else:
        yield f"`{value!r}`\n" if isinstance(value, (str, int)) else "A value; see the module.\n"


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, those of its private bases too, in the order of the source."""
    seen = set()
    for base in kind.__mro__:
        # What is public by itself is told there.
        public = any(base.__name__ in importlib.import_module(name).__all__ for name in MODULES)
        shown = base is kind or (base.__module__.startswith("qcowkit._") and not public)
        if not shown or base.__module__ == "qcowkit._qcowkit":
            continue
        for name, member in vars(base).items():
            known = isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member)
            known = known or type(member).__name__ == "cached_property"
            if known and not name.startswith("_") and name not in seen:
                seen.add(name)
                yield name, member


def fields(kind: type) -> str:
    """The fields of a dataclass, and other attributes with a comment of the form `#:`, as a list."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
    found = re.findall(r"((?:^    #: .*\n)+)    (?:self\.)?(\w+)(?:: ([^=\n]+?))?(?: = .*)?$", source, re.MULTILINE)
    lines = []
    for comment, name, annotation in found:
        if not name.startswith("_"):
            words = " ".join(line.strip().removeprefix("#: ") for line in comment.splitlines())
            lines.append(
                f"- `{name}{f': {annotation}' if annotation and dataclasses.is_dataclass(kind) else ''}`: {words}"
            )
    return "\n".join(lines) + "\n" if lines else ""


def signature(name: str, function: Any) -> str:
    """The call, with the annotations as they were written."""
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=Written(parameter.annotation))
        if parameter.annotation is not found.empty
        else parameter
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    result = found.return_annotation
    result = found.empty if result is found.empty else Written(result)
    return f"```python\n{name}{found.replace(parameters=parameters, return_annotation=result)}\n```\n"


def text(value: Any) -> str:
    """A docstring in Markdown: its sections as lists, its examples as code."""
    doc = inspect.cleandoc(value.__doc__ or "")
    doc = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", doc)
    parts: list[str] = []
    for block in doc.split("\n\n"):
        head, _, body = block.partition("\n")
        if block.lstrip().startswith(">>>"):
            parts.append(f"```pycon\n{textwrap.dedent(block)}\n```")
        elif head.rstrip(":") in SECTIONS and body:
            parts.append(f"**{head}**\n\n{listed(body)}")
        else:
            parts.append(block)
    return "\n\n".join(parts) + "\n" if parts != [""] else ""


def listed(body: str) -> str:
    """The entries of a section."""
    entries: list[str] = []
    for line in textwrap.dedent(body).splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line)
    return "\n".join(f"- {entry}" for entry in entries)


if __name__ == "__main__":
    sys.stdout.write(page())
    assert qcowkit.__all__
