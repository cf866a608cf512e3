"""Reports of an analysis: where the bytes of an image went, and how the disk lies in the file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from qcowkit import _html
from qcowkit._report import Report
from qcowkit.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpaceBytes:
    """Bytes of a file, and what the host does with them; `bytes = held + holes + unknown`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> total = analysis.ledger.total
    >>> total.bytes == total.held + total.holes + total.unknown
    True
    """

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
    """One class of the space ledger.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> line = analysis.ledger["live_data"]
    >>> line.kind, line.bytes
    ('live_data', 65536)
    """

    #: The class: "header", "l1_table", ..., "live_data", ..., "beyond_last_used" (docs/analyze.md).
    kind: str = dataclasses.field(metadata={"key": "class"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two structures that claim the same clusters: a corruption.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.ledger.overlaps
    ()
    """

    #: First byte in the file.
    host_offset: int
    #: Bytes.
    length: int
    #: Who claims them, in the order of precedence.
    claimed_by: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger(Report):
    """Every byte of a file in exactly one class. `to_dict()` is the member `ledger` of `qcowkit analyze`.

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

    def __getitem__(self, member: str) -> Any:
        """The line of the class of this name, or a member of the JSON.

        Raises:
            KeyError: there is neither.
        """
        for line in self.classes:
            if line.kind == member:
                return line
        return super().__getitem__(member)

    def table(self) -> Table:
        """The classes as a table: `kind`, `bytes`, `held`, `holes`, `unknown`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     analysis = image.analyze()
        >>> "live_data" in analysis.ledger.table()["kind"].to_list()
        True
        """
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
        """The classes as bars, what the host holds apart from holes. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     analysis = image.analyze()
        >>> analysis.ledger.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.ledger(self, ax)


_SPACE = ("bytes", "held", "holes", "unknown")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """What giving something back would return, in bytes.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.reclaim.repair_leaks
    Gain(host_bytes=0, host_bytes_unknown=0, file_bytes=0)
    """

    #: What the host gets back.
    host_bytes: int
    #: Further bytes of which it cannot tell whether it holds them.
    host_bytes_unknown: int
    #: By how much the file gets shorter.
    file_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compacted(Gain):
    """What rewriting the image would return.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.reclaim.compact.file_length <= analysis.ledger.file_length
    True
    """

    #: The length of the rewritten file.
    file_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reclaim:
    """What each way of giving space back would return (docs/analyze.md).

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.reclaim.drop_snapshots.host_bytes >= 65536
    True
    """

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
    """How large the file can get while the guest writes, in bytes (docs/analyze.md).

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.worst_case.fully_written > 1 << 30
    True
    """

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
    """Lengths in bytes. Percentiles are by nearest rank; all values are 0 when `count` is.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> runs = analysis.layout.guest_order.runs
    >>> runs.count, runs.bytes, runs.max
    (1, 65536, 65536)
    """

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
    """How the clusters of the disk lie in the file.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> order = analysis.layout.guest_order
    >>> order.clusters, order.discontinuities
    (1, 0)
    """

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
    """How compressed clusters lie in the file.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.layout.compressed.clusters
    0
    """

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
    """Free space inside the file.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> [gap.length for gap in analysis.layout.free.largest]
    []
    """

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
    """How much of the free space cannot take a request of a size in one piece.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> [(size.request_size, size.bytes) for size in analysis.layout.free.too_small_for][:1]
    [(4096, 0)]
    """

    #: The size.
    request_size: int
    #: Free bytes in gaps smaller than that.
    bytes: int
    #: The same of all free bytes.
    ppm: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeGaps:
    """Free space before the last cluster in use.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.layout.free.gaps.count
    0
    """

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
    """Data and holes in the order of the file.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.layout.file.data.bytes + analysis.layout.file.holes.bytes <= analysis.ledger.file_length
    True
    """

    #: Runs of data between holes.
    data: Distribution
    #: Holes.
    holes: Distribution


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostLayout:
    """How the file lies on the device below.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> host = analysis.layout.host
    >>> host is None or host.extents >= host.discontinuities
    True
    """

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
class Layout(Report):
    """How the disk lies in the file (docs/analyze.md). `to_dict()` is the member `layout` of `qcowkit analyze`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.layout.guest_order.clusters
    1
    """

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
        """The free gaps by size. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     analysis = image.analyze()
        >>> analysis.layout.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.gaps(self, ax)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis(Report):
    """Where the space of an image went, what could be had back, and how the disk lies: `qcowkit analyze`.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     analysis = image.analyze()
    >>> analysis.ledger["only_in_snapshots"].bytes
    65536
    """

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
        """The space ledger as bars. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     analysis = image.analyze()
        >>> analysis.plot().get_figure() is not None
        True
        """
        return self.ledger.plot(ax)
