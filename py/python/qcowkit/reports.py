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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from qcowkit import _html
from qcowkit._audit import Audit, AuditFinding, Measurement, NamedFile
from qcowkit._repair import CheckReport, OrphanedTable, RepairPlan
from qcowkit._report import Report, plain
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

    def plot(self, ax: Axes | None = None) -> Axes:
        """The size of the disk and what the file takes on the host, as bars. Needs `qcowkit[plot]`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.info().plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.sizes(self, ax)


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
    _settings: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)

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
