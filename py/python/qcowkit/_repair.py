"""Reports of checks and repairs."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from qcowkit import _html, _qcowkit
from qcowkit._build import build
from qcowkit._report import Report, optional
from qcowkit.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CheckReport", "OrphanedTable", "RepairPlan"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrphanedTable:
    """An L2 table that nothing leads to: maybe all that is left of a part of the disk.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     report = image.check()
    >>> report.orphaned_tables
    ()
    """

    #: First byte of the table in the file.
    host_offset: int
    #: Entries that say something.
    entries: int
    #: Of these, entries that lead to clusters that nothing else leads to.
    leaked_clusters: int
    #: How much it looks like a lost table, from 0 to 100.
    score: int
    #: The guest offset that it most likely began to map.
    likely_guest_offset: int | None
    #: Where it can belong; the first few.
    possible_guest_offsets: tuple[int, ...]


_FINDINGS: dict[str, Literal["uint64", "int64", "float64", "dictionary", "string"]] = {
    "severity": "dictionary",
    "kind": "dictionary",
    "structure": "dictionary",
    "host_offset": "uint64",
    "guest_offset": "uint64",
    "index": "uint64",
    "recorded": "uint64",
    "actual": "uint64",
    "count": "uint64",
    "message": "string",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckReport(Report):
    """What a check found: `qcowkit check`, with the counters of `qemu-img check`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     report = image.check()
    >>> report.ok, report.leaks, len(report.findings)
    (True, 0, 0)
    """

    #: Errors that endanger data.
    corruptions: int = 0
    #: Clusters whose refcount is higher than the references to them: lost space.
    leaks: int = 0
    #: What could not be checked.
    check_errors: int = optional("check-errors")
    #: The end of the last cluster in use, in bytes.
    image_end_offset: int = optional("image-end-offset")
    #: Guest clusters.
    total_clusters: int = optional("total-clusters")
    #: Guest clusters that have a host cluster.
    allocated_clusters: int = optional("allocated-clusters")
    #: Allocated clusters that do not follow the one before; and every compressed one.
    fragmented_clusters: int = optional("fragmented-clusters")
    #: Compressed guest clusters.
    compressed_clusters: int = optional("compressed-clusters")
    #: After a repair: leaks that it took away.
    leaks_fixed: int = optional("leaks-fixed")
    #: After a repair: corruptions that it took away.
    corruptions_fixed: int = optional("corruptions-fixed")

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and everything could be checked.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().ok
        True
        """
        return not (self.corruptions or self.leaks or self.check_errors)

    @property
    def warnings(self) -> int:
        """What breaks the specification but endangers nothing.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().warnings
        0
        """
        return int(self["qcowkit"]["warnings"])

    @property
    def incomplete(self) -> bool:
        """References are missing because something could not be read: leaks are not reported then.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().incomplete
        False
        """
        return bool(self["qcowkit"]["incomplete"])

    @property
    def findings_omitted(self) -> int:
        """Findings beyond the first 1000.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().findings_omitted
        0
        """
        return int(self["qcowkit"]["findings_omitted"])

    @functools.cached_property
    def findings(self) -> Table:
        """What is wrong: severity, kind, structure, host_offset?, guest_offset?, index?, recorded?, actual?, count,
        message.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().findings.columns[:3]
        ('severity', 'kind', 'structure')
        """
        return Table.from_rows(self["qcowkit"]["findings"], _FINDINGS)

    @property
    def orphaned_tables(self) -> tuple[OrphanedTable, ...]:
        """L2 tables that nothing leads to, among what is leaked.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().orphaned_tables
        ()
        """
        return tuple(build(OrphanedTable, table) for table in self["qcowkit"]["orphaned_tables"])

    def _repr_html_(self) -> str:
        verdict = "no errors" if self.ok else f"{self.corruptions} corruptions, {self.leaks} leaked clusters"
        if self.check_errors:
            verdict += f", {self.check_errors} things that could not be checked"
        counts = [
            ("allocated clusters", f"{self.allocated_clusters:,} of {self.total_clusters:,}"),
            ("fragmented clusters", self.fragmented_clusters),
            ("compressed clusters", self.compressed_clusters),
            ("image_end_offset", self.image_end_offset),
        ]
        return _html.page(f"Check: {verdict}", _html.facts(counts) + _found(self["qcowkit"]["findings"]))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Where in the file the findings are. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     report = image.check()
        >>> report.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.findings(self, ax)


def _found(findings: list[dict[str, Any]]) -> str:
    if not findings:
        return ""
    rest = f'<div class="note">and {len(findings) - 20:,} more</div>' if len(findings) > 20 else ""
    names = ["severity", "kind", "host_offset", "guest_offset", "count", "message"]
    if "action" in findings[0]:
        names = ["severity", "kind", "host_offset", "guest_offset", "owner", "action", "message"]
    return _html.columns(findings[:20], names) + rest


_REPAIRS: dict[str, Literal["uint64", "int64", "float64", "dictionary", "string"]] = {
    "severity": "dictionary",
    "kind": "dictionary",
    "structure": "dictionary",
    "host_offset": "uint64",
    "host_length": "uint64",
    "guest_offset": "uint64",
    "guest_length": "uint64",
    "owner": "dictionary",
    "action": "dictionary",
    "message": "string",
}


class RepairPlan:
    """What a repair would do, proven on a copy in memory: nothing is changed before it is applied.

    `to_dict()` is what `qcowkit check --repair LEVEL --dry-run --output=json` prints.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     plan = image.plan_repair()
    >>> plan.is_empty, plan.after.ok
    (True, True)
    """

    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __init__(self, plan: _qcowkit.RepairPlan) -> None:
        self._plan = plan
        self._data: dict[str, Any] = plan.report()
        self._repair: dict[str, Any] = self._data["qcowkit"]["repair_plan"]

    @property
    def level(self) -> str:
        """How much is repaired: "leaks" or "all".

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().level
        'all'
        """
        return str(self._repair["level"])

    @property
    def is_empty(self) -> bool:
        """There is nothing to do.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().is_empty
        True
        """
        return self._plan.is_empty

    @property
    def leaks_fixed(self) -> int:
        """Leaked clusters that it takes away.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().leaks_fixed
        0
        """
        return self._plan.fixes[0]

    @property
    def corruptions_fixed(self) -> int:
        """Corruptions that it takes away.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().corruptions_fixed
        0
        """
        return self._plan.fixes[1]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of metadata that it writes.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().bytes_to_write
        0
        """
        return int(self._repair["bytes_to_write"])

    @property
    def length_before(self) -> int:
        """Bytes of the file as it is.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().length_before == image.file_size
        True
        """
        return int(self._repair["length_before"])

    @property
    def length_after(self) -> int:
        """Bytes of the file as it will be.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     plan = image.plan_repair()
        >>> plan.length_after == plan.length_before
        True
        """
        return int(self._repair["length_after"])

    @property
    def limit(self) -> str | None:
        """What ended the plan before all was done that can be, since its changes are held in memory: "copies" (256 MiB
        of clusters with two uses), "changes" (1 GiB of them all) or "rounds" (8). Apply it, and plan again.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().limit is None
        True
        """
        limit = self._repair.get("limit")
        return None if limit is None else str(limit)

    @functools.cached_property
    def findings(self) -> Table:
        """What is wrong and what is done about it: severity, kind, structure, host_offset?, host_length, guest_offset?,
        guest_length, owner, action, message.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     len(image.plan_repair().findings)
        0
        """
        return Table.from_rows(self._repair["findings"], _REPAIRS)

    @property
    def orphaned_tables(self) -> tuple[OrphanedTable, ...]:
        """L2 tables that nothing leads to: the repair frees them, unless `relink` puts them back.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().orphaned_tables
        ()
        """
        return tuple(build(OrphanedTable, table) for table in self._repair["orphans"])

    @property
    def before(self) -> CheckReport | None:
        """The check of the image as it is; `None` where it is too broken to be checked.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     plan = image.plan_repair()
        >>> plan.before is not None and plan.before.ok
        True
        """
        before = self._repair["before"]
        return None if before is None else _check_of(before)

    @property
    def after(self) -> CheckReport:
        """The check of the image as it will be.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().after.ok
        True
        """
        return _check_of(self._repair["after"])

    def to_dict(self) -> dict[str, Any]:
        """The plan as the command line prints it in JSON: a copy, yours to change.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().to_dict()["qcowkit"]["repair_plan"]["level"]
        'all'
        """
        return copy.deepcopy(self._data)

    def __copy__(self) -> RepairPlan:
        # Plans never change.
        return self

    def __deepcopy__(self, memo: object) -> RepairPlan:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a repair plan stays in the process that made it; to_dict() tells what is in it")

    def __repr__(self) -> str:
        if self.is_empty:
            return "<qcowkit.RepairPlan: nothing to do>"
        return f"<qcowkit.RepairPlan: {self.corruptions_fixed} corruptions, {self.leaks_fixed} leaked clusters>"

    def _repr_html_(self) -> str:
        words = (
            "nothing to do"
            if self.is_empty
            else (
                f"{self.corruptions_fixed} corruptions and {self.leaks_fixed} leaked clusters repaired, "
                f"{self.bytes_to_write:,} bytes written"
            )
        )
        left = "" if self.after.ok else f"{self.after.corruptions} errors and {self.after.leaks} leaks would be left"
        return _html.page(f"Repair plan: {words}", _found(self._repair["findings"]), left)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Where in the file the findings are, by what is done about them. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair().plot().get_title()
        'Nothing to repair'
        """
        from qcowkit import plots

        return plots.repair(self, ax)


def _check_of(report: dict[str, Any]) -> CheckReport:
    """A check within a plan, in the form in which it is printed by itself."""
    own = ("findings", "findings_omitted", "incomplete", "warnings")
    data = {name.replace("_", "-"): value for name, value in report.items() if name not in own}
    data["qcowkit"] = {**{name: report[name] for name in own}, "orphaned_tables": []}
    return CheckReport._of(data)
