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
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from qcowkit import _html, _qcowkit
from qcowkit._build import build
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
class Report:
    """What all reports can do."""

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
        return _html.page(type(self).__name__, _html.facts(_plain(self._data)))


def _plain(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The members that fit in a line, those of members of members too."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {inner}", item) for inner, item in _plain(value))
        elif not isinstance(value, list):
            yield name, value


def _optional(key: str) -> Any:
    """A member that is left out where it is 0."""
    return dataclasses.field(default=0, metadata={"key": key})


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
        """What only qcow2 has: `compat`, `refcount-bits`, `bitmaps`, ..."""
        data: dict[str, Any] = self.to_dict().get("format-specific", {}).get("data", {})
        return data

    @property
    def snapshots(self) -> list[dict[str, Any]]:
        """The internal snapshots, with QEMU's members."""
        snapshots: list[dict[str, Any]] = self.to_dict().get("snapshots", [])
        return snapshots

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self._data.items() if name not in ("children", "format-specific")}
        rows = [*_plain(shown), *_plain(self.specific)]
        snapshots = [{**row, "size": row.get("vm-state-size")} for row in self.snapshots]
        body = _html.facts(rows)
        if snapshots:
            body += "<div>Snapshots</div>" + _html.columns(snapshots, ["id", "name", "size"])
        return _html.page(self.filename or "an image", body)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceBytes:
    """Bytes of a file, and what the host does with them; `bytes = held + holes + unknown`."""

    #: All of them.
    bytes: int
    #: Those for which the host has allocated space.
    held: int
    #: Those that are holes.
    holes: int
    #: Those of which the host cannot tell.
    unknown: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerLine(SpaceBytes):
    """One class of the space ledger."""

    #: The class: "header", "l1_table", ..., "live_data", ..., "beyond_last_used" (docs/analyze.md).
    kind: str = dataclasses.field(metadata={"key": "class"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two structures that claim the same clusters: a corruption."""

    #: First byte in the file.
    host_offset: int
    #: Bytes.
    length: int
    #: Who claims them, in the order of precedence.
    claimed_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """Every byte of a file in exactly one class.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     ledger = image.analyze().ledger
    >>> sum(line.bytes for line in ledger.classes) == ledger.file_length
    True
    """

    #: Length of the file: the sum over all classes.
    file_length: int
    #: Every class, in order, those without bytes too.
    classes: tuple[LedgerLine, ...]
    #: The sum of all classes.
    total: SpaceBytes
    #: Bytes of the host's allocation that belong to no byte of the file, where it tells.
    held_outside_file: int | None
    #: Bytes claimed by structures that contradict each other.
    overlapping_bytes: int
    #: The first 100 such places.
    overlaps: tuple[Overlap, ...]
    #: Bytes that something refers to although their refcount is zero: a corruption.
    referenced_but_free_bytes: int
    #: References to clusters beyond the end of the file.
    references_beyond_end: int
    #: The dirty bit is set, or refcounts cannot be read: "leaked" and "free" may be wrong.
    refcounts_may_be_wrong: bool
    #: Tables could not be read: what only they refer to counts as leaked or free.
    references_missing: bool

    def __getitem__(self, kind: str) -> LedgerLine:
        """The line of a class.

        Raises:
            KeyError: there is no such class.
        """
        for line in self.classes:
            if line.kind == kind:
                return line
        raise KeyError(kind)

    def table(self) -> Table:
        """The classes as a table: `kind`, `bytes`, `held`, `holes`, `unknown`."""
        rows = [{"kind": line.kind, **{name: getattr(line, name) for name in _SPACE}} for line in self.classes]
        return Table.from_rows(rows, {"kind": "dictionary", **dict.fromkeys(_SPACE, "uint64")})

    def _repr_html_(self) -> str:
        lines = [line for line in self.classes if line.bytes]
        rows = [
            {"class": line.kind.replace("_", " "), **{name: getattr(line, name) for name in _SPACE}} for line in lines
        ]
        body = _html.bar([(line.kind, line.bytes) for line in lines]) + _html.columns(rows, ["class", *_SPACE])
        return _html.page(f"{_html.size(self.file_length)} of file", body)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The classes as bars, what the host holds apart from holes. Needs `qcowkit[plot]`."""
        from qcowkit import plots

        return plots.ledger(self, ax)


_SPACE = ("bytes", "held", "holes", "unknown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """What giving something back would return, in bytes."""

    #: What the host gets back.
    host_bytes: int
    #: Further bytes of which it cannot tell whether it holds them.
    host_bytes_unknown: int
    #: By how much the file gets shorter.
    file_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compacted(Gain):
    """What rewriting the image would return."""

    #: The length of the rewritten file.
    file_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reclaim:
    """What each way of giving space back would return (docs/analyze.md)."""

    #: Holes for free clusters inside the file.
    punch_free: Gain
    #: Holes for clusters that are kept without data.
    discard_retained: Gain
    #: The end of the file cut off behind the last cluster in use.
    truncate_end: Gain
    #: Leaked clusters freed and punched.
    repair_leaks: Gain
    #: All snapshots deleted, and what only they use punched.
    drop_snapshots: Gain
    #: Live clusters of nothing but zeros unmapped; where they were searched.
    zero_filled: Gain | None
    #: The image rewritten with its snapshots.
    compact: Compacted
    #: The image rewritten without them.
    compact_without_snapshots: Compacted


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorstCase:
    """How large the file can get while the guest writes, in bytes (docs/analyze.md)."""

    #: Once every guest cluster holds data of its own.
    fully_written: int
    #: The same once all snapshots were deleted.
    fully_written_without_snapshots: int
    #: After every guest cluster was written once, if no free cluster is used again.
    without_reuse: int
    #: Of the external data file, where there is one.
    data_file: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """Lengths in bytes. Percentiles are by nearest rank; all values are 0 when `count` is."""

    #: How many.
    count: int
    #: Their sum.
    bytes: int
    #: `bytes / count`, rounded down.
    mean: int
    #: The shortest.
    min: int
    #: 10th percentile.
    p10: int
    #: The median.
    p50: int
    #: 90th percentile.
    p90: int
    #: 99th percentile.
    p99: int
    #: The longest.
    max: int
    #: The largest length such that at least half of the bytes are in runs of it or longer.
    half_of_bytes_in: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuestOrder:
    """How the clusters of the disk lie in the file."""

    #: Guest clusters that have a host cluster.
    clusters: int
    #: Places at which the next guest cluster is not in the next host cluster.
    discontinuities: int
    #: Those that jump back in the file.
    backward: int
    #: Discontinuities per cluster.
    discontinuities_ppm: int
    #: Runs contiguous in the guest and in the file at once.
    runs: Distribution


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressedOrder:
    """How compressed clusters lie in the file."""

    #: Compressed clusters.
    clusters: int
    #: Bytes that their entries give them.
    stream_bytes: int
    #: The same per guest bytes that they hold.
    ratio_ppm: int
    #: Streams that begin elsewhere than behind the one before.
    discontinuities: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gap:
    """Free space inside the file."""

    #: First byte in the file.
    host_offset: int
    #: Bytes.
    length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapBucket:
    """Gaps of a size from `from_bytes` up to, not including, twice as much."""

    #: The smallest size, a power of two.
    from_bytes: int = dataclasses.field(metadata={"key": "from"})
    #: Gaps.
    count: int
    #: Their bytes together.
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TooSmall:
    """How much of the free space cannot take a request of a size in one piece."""

    #: The size.
    request_size: int
    #: Free bytes in gaps smaller than that.
    bytes: int
    #: The same of all free bytes.
    ppm: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeGaps:
    """Free space before the last cluster in use."""

    #: The lengths of the gaps.
    gaps: Distribution
    #: Gaps by size, ascending.
    histogram: tuple[GapBucket, ...]
    #: What request sizes find too small.
    too_small_for: tuple[TooSmall, ...]
    #: The largest gaps, at most 16.
    largest: tuple[Gap, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRuns:
    """Data and holes in the order of the file."""

    #: Runs of data between holes.
    data: Distribution
    #: Holes.
    holes: Distribution


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostLayout:
    """How the file lies on the device below."""

    #: Extents as the file system counts them.
    extents: int
    #: Extents that do not follow the one before on the device.
    discontinuities: int
    #: Stretches of the file that are contiguous on the device.
    runs: Distribution
    #: Bytes reserved but never written.
    unwritten_bytes: int
    #: Bytes whose space belongs to other files too.
    shared_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the disk lies in the file (docs/analyze.md)."""

    #: Uncompressed clusters in the guest's order.
    guest_order: GuestOrder
    #: Compressed clusters in the guest's order.
    compressed: CompressedOrder
    #: Free space inside the file.
    free: FreeGaps
    #: Data and holes of the file.
    file: DataRuns
    #: Extents on the device below, where the file system tells.
    host: HostLayout | None

    def _repr_html_(self) -> str:
        order, free = self.guest_order, self.free
        body = _html.facts(
            [
                ("guest clusters in the file", order.clusters),
                ("discontinuities", order.discontinuities),
                ("discontinuities_ppm", order.discontinuities_ppm),
                ("runs", order.runs.count),
                ("mean run, bytes", order.runs.mean),
                ("half of the bytes in runs of, bytes", order.runs.half_of_bytes_in),
                ("compressed clusters", self.compressed.clusters),
                ("free gaps", free.gaps.count),
                ("free bytes", free.gaps.bytes),
                ("largest gap, bytes", free.gaps.max),
            ]
        )
        return _html.page("Layout", body)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The free gaps by size. Needs `qcowkit[plot]`."""
        from qcowkit import plots

        return plots.gaps(self, ax)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis(Report):
    """Where the space of an image went, what could be had back, and how the disk lies: `qcowkit analyze`."""

    #: Bytes of the virtual disk.
    virtual_size: int
    #: Bytes of a cluster.
    cluster_size: int
    #: The space ledger of the file.
    ledger: Ledger
    #: That of the external data file, where there is one and it is open.
    data_file: Ledger | None
    #: What each way of giving space back would return.
    reclaim: Reclaim
    #: How large the file can get.
    worst_case: WorstCase
    #: How the disk lies in the file.
    layout: Layout
    #: Live clusters of nothing but zeros, where they were searched.
    zero_filled: SpaceBytes | None
    #: Bytes at the ends of compressed streams that may be padding, at most.
    compressed_padding_at_most: int
    #: Entries and tables that are wrong in themselves; `check` tells which.
    faults: int

    def _repr_html_(self) -> str:
        ways = [
            {"way": name.replace("_", " "), **value}
            for name, value in self._data["reclaim"].items()
            if value is not None and (value["host_bytes"] or value["file_bytes"])
        ]
        body = self.ledger._repr_html_() + self.layout._repr_html_()
        if ways:
            body += "<div>Giving space back</div>" + _html.columns(ways, ["way", "host_bytes", "file_bytes"])
        sizes = f"{_html.size(self.virtual_size)} of disk in {_html.size(self.ledger.file_length)} of file"
        return _html.page(f"Analysis: {sizes}", body)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The space ledger as bars. Needs `qcowkit[plot]`."""
        return self.ledger.plot(ax)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrphanedTable:
    """An L2 table that nothing leads to: maybe all that is left of a part of the disk."""

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
    check_errors: int = _optional("check-errors")
    #: The end of the last cluster in use, in bytes.
    image_end_offset: int = _optional("image-end-offset")
    #: Guest clusters.
    total_clusters: int = _optional("total-clusters")
    #: Guest clusters that have a host cluster.
    allocated_clusters: int = _optional("allocated-clusters")
    #: Allocated clusters that do not follow the one before; and every compressed one.
    fragmented_clusters: int = _optional("fragmented-clusters")
    #: Compressed guest clusters.
    compressed_clusters: int = _optional("compressed-clusters")
    #: After a repair: leaks that it took away.
    leaks_fixed: int = _optional("leaks-fixed")
    #: After a repair: corruptions that it took away.
    corruptions_fixed: int = _optional("corruptions-fixed")

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and everything could be checked."""
        return not (self.corruptions or self.leaks or self.check_errors)

    @property
    def warnings(self) -> int:
        """What breaks the specification but endangers nothing."""
        return int(self["qcowkit"]["warnings"])

    @property
    def incomplete(self) -> bool:
        """References are missing because something could not be read: leaks are not reported then."""
        return bool(self["qcowkit"]["incomplete"])

    @property
    def findings_omitted(self) -> int:
        """Findings beyond the first 1000."""
        return int(self["qcowkit"]["findings_omitted"])

    @functools.cached_property
    def findings(self) -> Table:
        """What is wrong: severity, kind, structure, host_offset?, guest_offset?, index?, recorded?, actual?, count,
        message."""
        return Table.from_rows(self["qcowkit"]["findings"], _FINDINGS)

    @property
    def orphaned_tables(self) -> tuple[OrphanedTable, ...]:
        """L2 tables that nothing leads to, among what is leaked."""
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
        """Where in the file the findings are. Needs `qcowkit[plot]`."""
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
        """How much is repaired: "leaks" or "all"."""
        return str(self._repair["level"])

    @property
    def is_empty(self) -> bool:
        """There is nothing to do."""
        return self._plan.is_empty

    @property
    def leaks_fixed(self) -> int:
        """Leaked clusters that it takes away."""
        return self._plan.fixes[0]

    @property
    def corruptions_fixed(self) -> int:
        """Corruptions that it takes away."""
        return self._plan.fixes[1]

    @property
    def bytes_to_write(self) -> int:
        """Bytes of metadata that it writes."""
        return int(self._repair["bytes_to_write"])

    @property
    def length_before(self) -> int:
        """Bytes of the file as it is."""
        return int(self._repair["length_before"])

    @property
    def length_after(self) -> int:
        """Bytes of the file as it will be."""
        return int(self._repair["length_after"])

    @functools.cached_property
    def findings(self) -> Table:
        """What is wrong and what is done about it: severity, kind, structure, host_offset?, host_length, guest_offset?,
        guest_length, owner, action, message."""
        return Table.from_rows(self._repair["findings"], _REPAIRS)

    @property
    def orphaned_tables(self) -> tuple[OrphanedTable, ...]:
        """L2 tables that nothing leads to: the repair frees them, unless `relink` puts them back."""
        return tuple(build(OrphanedTable, table) for table in self._repair["orphans"])

    @property
    def before(self) -> CheckReport | None:
        """The check of the image as it is; `None` where it is too broken to be checked."""
        before = self._repair["before"]
        return None if before is None else _check_of(before)

    @property
    def after(self) -> CheckReport:
        """The check of the image as it will be."""
        return _check_of(self._repair["after"])

    def to_dict(self) -> dict[str, Any]:
        """The plan as the command line prints it in JSON: a copy, yours to change."""
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
    """Guest bytes by what the image itself, not its backing file, says of them."""

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
    """What discards did: `qcowkit discard`."""

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
        """Guest bytes that had host clusters before, and have none afterwards."""
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
        """The states before and after as bars. Needs `qcowkit[plot]`."""
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
    """The size of an increment."""

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
    """How large an increment is going to be, made in three ways."""

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
    """Guest bytes in each state; together they are the disk."""

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
    """What changed since an earlier state, in four states: `qcowkit delta`."""

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
        """The delta as the command line prints it in JSON, with all ranges: a copy, yours to change."""
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
        """The sizes of the increments as bars. Needs `qcowkit[plot]`."""
        from qcowkit import plots

        return plots.forecast(self, ax)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One thing that an audit found."""

    #: What it makes of the verdict: "safe" (a note), "caution" or "danger".
    verdict: Literal["safe", "caution", "danger"]
    #: What it is about.
    kind: str
    #: The structure, where it is one.
    structure: str | None
    #: Where in the file.
    host_offset: int | None
    #: All that in words; names of the image are quoted.
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A file that an image names."""

    #: "backing_file" or "data_file".
    role: str
    #: The name as it stands in the image.
    name: str
    #: The format that the image states for it.
    format: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Report):
    """A verdict on an image from a stranger: `qcowkit audit`.

    >>> qcowkit.audit("disk.qcow2").verdict
    'safe'
    """

    #: The worst of the findings: "safe", "caution" or "danger".
    verdict: Literal["safe", "caution", "danger"]
    #: What was looked at: "header" or "deep".
    scope: Literal["header", "deep"]
    #: "qcow2", or the format that the first bytes show; "raw" where they show none.
    format: str
    #: The qcow2 version.
    version: int | None
    #: Bytes of the virtual disk, as the header says it.
    virtual_size: int | None
    #: Bytes of a cluster.
    cluster_size: int | None
    #: Internal snapshots, as the header says it.
    snapshots: int | None
    #: Bytes of the file.
    file_length: int | None
    #: The files that it names.
    references: tuple[NamedFile, ...]
    #: What speaks for caution, the worst first.
    findings: tuple[AuditFinding, ...]

    def _repr_html_(self) -> str:
        found = _html.columns(self._data["findings"], ["verdict", "kind", "host_offset", "message"])
        files = _html.columns(self._data["references"], ["role", "name", "format"])
        body = (found if self.findings else "") + (files if self.references else "")
        return _html.page(f"Audit: {self.verdict}", body)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement(Report):
    """How large the file of a new image becomes: `qcowkit measure`.

    >>> qcowkit.measure(size=1 << 30).fully_allocated
    1074135040
    """

    #: Bytes that are enough for the data that there are.
    required: int
    #: Bytes that are enough when every cluster is written.
    fully_allocated: int = dataclasses.field(metadata={"key": "fully-allocated"})
    #: Bytes that copies of its bitmaps take more, where it has a file that can hold any.
    bitmaps: int | None = None
