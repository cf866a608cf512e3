"""What all reports have in common."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

from qcowkit import _html
from qcowkit._build import build

__all__ = ["Report", "optional", "plain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What all reports can do.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     report = image.check()
    >>> isinstance(report, qcowkit.reports.Report), report["corruptions"] if "corruptions" in report else 0
    (True, 0)
    """

    _data: Mapping[str, Any] = dataclasses.field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def _of(cls, data: Mapping[str, Any], **more: Any) -> Self:
        report = build(cls, data)
        return dataclasses.replace(report, _data=data, **more)

    def to_dict(self) -> dict[str, Any]:
        """The report as the command line prints it in JSON: a copy, yours to change.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().to_dict()["check-errors"]
        0
        """
        return copy.deepcopy(dict(self._data))

    def __getitem__(self, member: str) -> Any:
        """A member of the JSON by its name."""
        return self._data[member]

    def __contains__(self, member: object) -> bool:
        return member in self._data

    def _repr_html_(self) -> str:
        return _html.page(type(self).__name__, _html.facts(plain(self._data)))


def plain(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The members that fit in a line, those of members of members too."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", item) for inner, item in plain(value))
        elif not isinstance(value, list):
            yield name, value


def optional(key: str) -> Any:
    """A member that is left out where it is 0."""
    return dataclasses.field(default=0, metadata={"key": key})
