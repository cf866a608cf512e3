"""Reports: what an operation found, as values with typed attributes.

Each report has `to_dict()`, which equals what the command line prints as JSON, members by the same names
(`report["virtual-size"]`), and a form for notebooks; most have `plot(ax=None)`, which needs the extra `qcowkit[plot]`.
All sizes are in bytes, all shares in parts per million (`_ppm`).

>>> with qcowkit.open("disk.qcow2") as image:
...     analysis = image.analyze()
>>> analysis.ledger["live_data"].bytes
65536
>>> analysis.to_dict()["cluster_size"]
65536
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from qcowkit import _html, _qcowkit
from qcowkit._audit import Audit, AuditFinding, Measurement, NamedFile
from qcowkit._build import build
from qcowkit._report import Report, optional, plain
from qcowkit._space import (
    Analysis,
    Compacted,
    CompressedOrder,
    DataRuns,
    Distribution,
    FreeGaps,
    Gain,
    Gap,
    GuestOrder,
    HostLayout,
    Layout,
    Ledger,
    LedgerLine,
    Overlap,
    Reclaim,
    SpaceBytes,
    TooSmall,
    WorstCase,
)
from qcowkit.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qcowkit.policy import DiscardPolicy

__all__ = [
    "Analysis",
    "Audit",
    "AuditFinding",
    "CheckReport",
    "Compacted",
    "CompressedOrder",
    "DataRuns",
    "Delta",
    "DiscardPlan",
    "DiscardReport",
    "Distribution",
    "Forecast",
    "FreeGaps",
    "Gain",
    "Gap",
    "GuestOrder",
    "HostLayout",
    "ImageInfo",
    "IncrementSize",
    "Layout",
    "Ledger",
    "LedgerLine",
    "Measurement",
    "NamedFile",
    "OrphanedTable",
    "Overlap",
    "Reclaim",
    "RepairPlan",
    "Report",
    "SpaceBytes",
    "StateBytes",
    "TooSmall",
    "WorstCase",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageInfo(Report):
    """What an image says of itself: `qcowkit info`, with the members of `qemu-img info`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     image.info().virtual_size
    1073741824
    """

    #: The name that the image was opened by.
    filename: str
    #: "qcow2".
    format: str
    #: Bytes of the virtual disk.
    virtual_size: int = dataclasses.field(metadata={"key": "virtual-size"})
    #: Bytes that the file takes on the host.
    actual_size: int = dataclasses.field(metadata={"key": "actual-size"})
    #: Bytes of a cluster.
    cluster_size: int = dataclasses.field(metadata={"key": "cluster-size"})
    #: The name of the backing file as it stands in the image.
    backing_filename: str | None = dataclasses.field(default=None, metadata={"key": "backing-filename"})
    #: The format that the image states for it.
    backing_format: str | None = dataclasses.field(default=None, metadata={"key": "backing-filename-format"})
    #: Guest data are encrypted.
    encrypted: bool = False
    #: The image was not closed by its last writer, whose refcounts were lazy.
    dirty: bool = dataclasses.field(default=False, metadata={"key": "dirty-flag"})

    @property
    def specific(self) -> dict[str, Any]:
        """What only qcow2 has: `compat`, `refcount-bits`, `bitmaps`, ...

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.info().specific["compat"]
        '1.1'
        """
        data: dict[str, Any] = self.to_dict().get("format-specific", {}).get("data", {})
        return data

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        """The internal snapshots, with QEMU's members.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     [snapshot["name"] for snapshot in image.info().snapshots]
        ['before']
        """
        snapshots: list[dict[str, Any]] = self.to_dict().get("snapshots", [])
        return snapshots

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self._data.items() if name not in ("children", "format-specific")}
        rows = [*plain(shown), *plain(self.specific)]
        snapshots = [{**row, "size": row.get("vm-state-size")} for row in self.snapshots]
        body = _html.facts(rows)
        if snapshots:
            body += "<div>Snapshots</div>" + _html.columns(snapshots, ["id", "name", "size"])
        return _html.page(self.filename or "an image", body)


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


def _check_of(report: dict[str, Any]) -> CheckReport:
    """A check within a plan, in the form in which it is printed by itself."""
    own = ("findings", "findings_omitted", "incomplete", "warnings")
    data = {name.replace("_", "-"): value for name, value in report.items() if name not in own}
    data["qcowkit"] = {**{name: report[name] for name in own}, "orphaned_tables": []}
    return CheckReport._of(data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Guest bytes by what the image itself, not its backing file, says of them.

    >>> with qcowkit.open("disk.qcow2", "scratch") as image:
    ...     plan = image.plan_discard([(1 << 20, 65536)])
    >>> plan.before.data, plan.after.data
    (65536, 0)
    """

    #: Data in host clusters.
    data: int
    #: Compressed data.
    compressed: int
    #: Reads as zeros; host clusters are kept.
    zero_retained: int
    #: Reads as zeros; nothing is kept.
    zero: int
    #: Nothing is stored: the backing file is read, or zeros.
    unallocated: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscardReport(Report):
    """What discards did: `qcowkit discard`.

    >>> with qcowkit.open("disk.qcow2", "scratch") as image:
    ...     report = image.apply(image.plan_discard([(1 << 20, 65536)], "no-unref"))
    >>> report.dry_run, report.after.zero_retained
    (False, 65536)
    """

    #: The name of the image.
    filename: str
    #: Nothing was changed.
    dry_run: bool
    #: Ranges.
    ranges: int
    #: Their bytes; where ranges overlap, as often as they are in one.
    requested_bytes: int
    #: The ranges before.
    before: StateBytes
    #: The ranges afterwards.
    after: StateBytes
    #: Bytes of the file for which holes were asked of the host; also of places that were holes before.
    host_discards: int
    #: Zeros written to the host instead, in bytes.
    host_zeroes: int
    #: Bytes that the host held for the file before, where it can tell.
    host_bytes_before: int | None
    #: And afterwards; not known of a plan.
    host_bytes_after: int | None = None
    #: Bytes of the file before.
    file_length_before: int
    #: And afterwards.
    file_length_after: int

    @property
    def clusters_given_up(self) -> int:
        """Guest bytes that had host clusters before, and have none afterwards.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     plan = image.plan_discard([(1 << 20, 65536)])
        >>> plan.clusters_given_up
        65536
        """
        kept = ("data", "compressed", "zero_retained")
        had, has = (sum(int(getattr(side, name)) for name in kept) for side in (self.before, self.after))
        return had - has

    def _repr_html_(self) -> str:
        states = [
            {"state": name.replace("_", " "), "before_bytes": before, "after_bytes": getattr(self.after, name)}
            for name, before in dataclasses.asdict(self.before).items()
            if before or getattr(self.after, name)
        ]
        facts = [
            ("ranges", self.ranges),
            ("requested_bytes", self.requested_bytes),
            ("holes asked of the host, bytes", self.host_discards),
            ("file length before", self.file_length_before),
            ("file length after", self.file_length_after),
        ]
        words = "Discard plan: nothing was changed" if self.dry_run else "Discarded"
        return _html.page(words, _html.columns(states, ["state", "before_bytes", "after_bytes"]) + _html.facts(facts))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The states before and after as bars. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     plan = image.plan_discard([(1 << 20, 65536)])
        >>> plan.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.discard(self, ax)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscardPlan(DiscardReport):
    """What discards would do: `qcowkit discard --dry-run`, worked out on a copy in memory. `image.apply(plan)` does it.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     plan = image.plan_discard([(1 << 20, 65536)])
    >>> plan.before.data, plan.after.data, plan.pieces[0].after
    (65536, 0, 'zero')
    """

    #: Each piece of the ranges: guest_offset, length, before, after (kinds as in `map()`), host_offset?.
    pieces: Table = dataclasses.field(repr=False, compare=False)
    #: The policy that it was made for.
    policy: DiscardPolicy
    _ranges: list[tuple[int, int]] = dataclasses.field(repr=False)
    _state: int = dataclasses.field(repr=False)

    @classmethod
    def _of_plan(cls, data: Mapping[str, Any], more: Mapping[str, Any]) -> Self:
        return cls(**{**vars(DiscardReport._of(data)), **more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncrementSize:
    """The size of an increment.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     delta = image.delta(snapshot="before")
    >>> delta.forecast.all_dirty.raw_bytes
    65536
    """

    #: Bytes of a raw increment: the changed data, one range behind the other.
    raw_bytes: int
    #: Bytes of the file of a qcow2 increment.
    qcow2_bytes: int
    #: Of these, clusters with data.
    data_clusters: int
    #: Of these, clusters with tables.
    metadata_clusters: int
    #: Clusters that are only noted as zeros.
    zero_clusters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """How large an increment is going to be, made in three ways.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     delta = image.delta(snapshot="before")
    >>> delta.forecast.cluster_size, delta.forecast.all_dirty.data_clusters
    (65536, 1)
    """

    #: Bytes of a cluster of the qcow2 increment.
    cluster_size: int
    #: Everything that changed is copied: what a program does that knows the bitmap alone.
    all_dirty: IncrementSize
    #: What the mapping says is zero is noted, not copied.
    without_known_zeros: IncrementSize
    #: Zeros among the data, and data that are as before, are left out too; only where data were read.
    without_zeros_and_equal: IncrementSize | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaTotals:
    """Guest bytes in each state; together they are the disk.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     delta = image.delta(snapshot="before")
    >>> delta.totals.dirty_data, delta.totals.dirty_zero
    (65536, 0)
    """

    #: Unchanged, data.
    clean: int
    #: Changed, data.
    dirty_data: int
    #: Changed, reads as zeros.
    dirty_zero: int
    #: Unchanged, reads as zeros.
    clean_zero: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Report):
    """What changed since an earlier state, in four states: `qcowkit delta`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     delta = image.delta(snapshot="before")
    >>> [(row.start, row.state) for row in delta.ranges]
    [(0, 'clean_zero'), (1048576, 'dirty_data'), (1114112, 'clean_zero')]
    """

    #: The name of the image.
    filename: str
    #: Bytes of the virtual disk.
    virtual_size: int
    #: Bytes of the disk in its earlier state, where that is known.
    old_virtual_size: int | None
    #: Guest bytes that one bit of the bitmap speaks for, where it is from a bitmap.
    granularity: int | None
    #: Data were read.
    read: bool
    #: Bytes in each state.
    totals: DeltaTotals
    #: How large an increment is going to be.
    forecast: Forecast
    #: The whole disk, in order: start, length, state ("clean", "dirty_data", "dirty_zero", "clean_zero").
    ranges: Table = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The delta as the command line prints it in JSON, with all ranges: a copy, yours to change.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     delta = image.delta(snapshot="before")
        >>> len(delta.to_dict()["ranges"])
        3
        """
        data = {name: value for name, value in self._data.items() if name != "ranges"}
        return {**copy.deepcopy(data), "ranges": self.ranges.to_dicts()}

    def _repr_html_(self) -> str:
        totals = dataclasses.asdict(self.totals)
        sizes = [
            {"increment": name.replace("_", " "), **value}
            for name, value in self._data["forecast"].items()
            if isinstance(value, Mapping)
        ]
        body = _html.bar(list(totals.items()))
        body += _html.columns(sizes, ["increment", "raw_bytes", "qcow2_bytes", "data_clusters", "zero_clusters"])
        return _html.page(f"Delta of {_html.size(self.virtual_size)} of disk", body)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The sizes of the increments as bars. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     delta = image.delta(snapshot="before")
        >>> delta.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.forecast(self, ax)
