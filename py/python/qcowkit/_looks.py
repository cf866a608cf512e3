"""Looking at images: tables and reports, and the plans that are made from them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from qcowkit import _qcowkit, reports
from qcowkit._check import unsigned
from qcowkit._handle import Handle, handle_of
from qcowkit._progress import ProgressLike, progress_function
from qcowkit._ranges import RangesLike, ranges
from qcowkit.errors import InvalidArgumentError
from qcowkit.policy import DiscardPolicy, PolicyLike
from qcowkit.reports import (
    Analysis,
    Audit,
    CheckReport,
    Delta,
    DiscardPlan,
    DiscardReport,
    Layout,
    Ledger,
    Measurement,
    RepairPlan,
)
from qcowkit.table import Table

if TYPE_CHECKING:
    from qcowkit._open import Source

__all__ = ["Looks", "apply_repair", "audit", "check", "measure", "plan_repair", "undo_repair"]


class Looks(Handle):
    """Tables, reports and plans of an open image."""

    def map(
        self,
        start: SupportsIndex = 0,
        stop: SupportsIndex | None = None,
        *,
        chain: bool = True,
        merge: bool = True,
        progress: ProgressLike | None = None,
    ) -> Table:
        """What the guest's bytes are and where they lie, in runs, sorted and without gaps.

        Columns: `guest_offset`, `length`; `kind`: "data", "compressed", "zero", "zero_retained" (reads as zeros and
        keeps its place in the file) or "unallocated"; `host_offset`? in the file of its layer; `depth`: the layer, 0 is
        the image itself; `compressed_length`? of the stream, in whole sectors.

        Args:
            start: the first guest byte.
            stop: the byte behind the last one; the end of the disk by default.
            chain: through the backing chain. Without, what the image leaves to it is "unallocated".
            merge: runs as long as they can be. Without, they may end at tables of the image.
            progress: told the bytes done, of how many.

        Raises:
            qcowkit.errors.OutOfRangeError: the range reaches beyond the disk.
            qcowkit.errors.DeniedError: parts lie in a backing file that was not opened; `chain=False` tells the rest.
            qcowkit.errors.CorruptImageError: an entry makes no sense; `check` tells which do.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.map(1 << 20)[0].kind
        'data'
        """
        first, last = unsigned(start, "start"), self._handle.size if stop is None else unsigned(stop, "stop")
        return Table(self._handle.map_table(first, last, chain, merge, progress_function(progress)))

    def runs(self, *, progress: ProgressLike | None = None) -> Table:
        """Runs of the image's own clusters, contiguous in the guest and in the file at once, in the guest's order.

        Columns: `guest_offset`, `host_offset`, `length`; `jump`?: from the end of the run before to the beginning of
        this one in the file, in bytes, negative where it goes back. Clusters that keep their place without data count.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.runs()[0].length
        65536
        """
        return Table(self._handle.runs_table(progress_function(progress)))

    def clusters(
        self,
        start: SupportsIndex = 0,
        stop: SupportsIndex | None = None,
        *,
        data_file: bool = False,
        progress: ProgressLike | None = None,
    ) -> Table:
        """What lies where in the file: its clusters in runs that are alike, sorted and without gaps.

        Columns: `host_offset`, `length`; `kind`: the class of the space ledger (docs/analyze.md); `structure`: what the
        clusters are for their owner; `owner`: "active", "snapshots", "both" or "none"; `guest_offset`?: what the first
        byte stores; `refcount`?: as the image says it; `references`: as they were found. Broken images are told as far
        as references can be followed.

        Args:
            start, stop: host offsets; the whole file by default.
            data_file: of the external data file instead.
            progress: told what is done, of how much.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no data file.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.clusters()[0].kind
        'header'
        """
        last = (1 << 64) - 1 if stop is None else unsigned(stop, "stop")
        return Table(
            self._handle.clusters_table(unsigned(start, "start"), last, data_file, progress_function(progress))
        )

    def gaps(self, *, progress: ProgressLike | None = None) -> Table:
        """Free space before the last cluster in use, in maximal runs: `host_offset`, `length`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     len(image.gaps())
        0
        """
        return Table(self._handle.gaps_table(progress_function(progress)))

    def refcounts(self, *, progress: ProgressLike | None = None) -> Table:
        """The clusters of the file in runs of one refcount and one number of references.

        Columns: `host_offset`, `length`; `refcount`?: as the image says it, null where it cannot be read; `references`:
        as they were found. Where they differ, space is lost (more) or data are in danger (less).

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.refcounts()[0].refcount
        1
        """
        return Table(self._handle.refcounts_table(progress_function(progress)))

    def analyze(
        self,
        *,
        scan_zeroes: bool = False,
        request_sizes: Iterable[SupportsIndex] | None = None,
        extents: bool = True,
        progress: ProgressLike | None = None,
    ) -> Analysis:
        """Where the space went, what could be had back, and how the disk lies: what `qcowkit analyze` tells.

        Args:
            scan_zeroes: read the live data, and look for clusters of nothing but zeros.
            request_sizes: sizes in bytes for which the free space is looked at.
            extents: ask the file system for its extents, which has data that wait in memory written out first.
            progress: told what is done, of how much.

        Raises:
            qcowkit.errors.LimitError: the file is too large to be analyzed in memory.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.analyze().layout.guest_order.runs.count
        1
        """
        sizes = None if request_sizes is None else [unsigned(size, "a request size") for size in request_sizes]
        return Analysis._of(self._handle.analyze(scan_zeroes, sizes, extents, progress_function(progress)))

    def space(self) -> Ledger:
        """The space ledger alone: every byte of the file in one class.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.space()["header"].bytes
        65536
        """
        return self.analyze().ledger

    def layout(self) -> Layout:
        """The layout alone: how far the orders of the guest and of the file differ, and how free space is cut up.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.layout().guest_order.discontinuities
        0
        """
        return self.analyze().layout

    def check(self, *, progress: ProgressLike | None = None) -> CheckReport:
        """Are the refcounts what the references say, and is every entry sound? What `qcowkit check` tells.

        A file too broken to be opened is checked by :func:`qcowkit.check`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.check().ok
        True
        """
        return CheckReport._of(self._handle.check_report(progress_function(progress)))

    def plan_repair(
        self,
        level: Literal["all", "leaks"] = "all",
        *,
        relink: Iterable[tuple[SupportsIndex, SupportsIndex]] = (),
        progress: ProgressLike | None = None,
    ) -> RepairPlan:
        """Works out a repair, and proves it on a copy in memory. Changes nothing; `apply` carries it out.

        Args:
            level: "all", or "leaks" to free leaked clusters alone.
            relink: orphaned L2 tables to put back: pairs (host offset of the table, guest offset that it maps from).
            progress: told what is done, of how much.

        Raises:
            qcowkit.errors.NoSpaceError: there is no room for what has to be written anew.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_repair("leaks").is_empty
        True
        """
        return RepairPlan(self._handle.plan_repair(_level(level), _relinked(relink), progress_function(progress)))

    def plan_discard(
        self,
        ranges: RangesLike | Literal["all"],
        policy: PolicyLike | None = None,
        *,
        progress: ProgressLike | None = None,
    ) -> DiscardPlan:
        """What discards of these ranges would do, worked out on a copy in memory. Changes nothing; `apply` does it.

        Works on images of every mode: one opened with "r" can be planned for.

        Args:
            ranges: a table with `guest_offset` (or `offset`, or `start`) and `length`, pairs (offset, length), or
                "all".
                Parts smaller than a cluster at the ends of a range are left alone, as QEMU leaves them.
            policy: what discards do; the policy that the image was opened with by default.
            progress: told the bytes done, of how many.

        Raises:
            qcowkit.errors.OutOfRangeError: a range reaches beyond the disk.
            TypeError, ValueError: these are no ranges.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.plan_discard([(1 << 20, 65536)], "no-unref").after.zero_retained
        65536
        """
        wanted, (chosen, settings) = self._ranges(ranges), self._chosen(policy)
        plan, pieces, state = self._handle.plan_discard(wanted, settings, progress_function(progress))
        more = {
            "pieces": Table(pieces),
            "policy": chosen,
            "_ranges": wanted,
            "_state": state,
            "_settings": tuple(settings),
        }
        return DiscardPlan._of_plan(plan, more)

    def discard_ranges(
        self,
        ranges: RangesLike | Literal["all"],
        policy: PolicyLike | None = None,
        *,
        progress: ProgressLike | None = None,
    ) -> DiscardReport:
        """Discards ranges and tells what became of them: a plan and its `apply` in one step, without the look between.

        Args and errors as :meth:`plan_discard`, and:

        Raises:
            qcowkit.errors.ReadOnlyError: the image was opened with "r".

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.discard_ranges("all").after.data
        0
        """
        _, settings = self._chosen(policy)
        return DiscardReport._of(
            self._handle.apply_discard(self._ranges(ranges), settings, None, progress_function(progress))
        )

    def _chosen(self, policy: PolicyLike | None) -> tuple[DiscardPolicy, list[tuple[str, str]]]:
        """A policy, or that of the image, and how it is spelled."""
        if policy is None:
            words = self._handle.policy_words()
            return DiscardPolicy._of_words(words), words
        chosen = DiscardPolicy.of(policy)
        return chosen, list(chosen.options().items())

    def _ranges(self, wanted: RangesLike | Literal["all"]) -> list[tuple[int, int]]:
        if isinstance(wanted, str):
            if wanted == "all":
                return [(0, self._handle.size)]
            raise InvalidArgumentError(f"ranges are a table, pairs (offset, length) or 'all', not {wanted!r}")
        return ranges(wanted)

    @overload
    def apply(self, plan: DiscardPlan, *, progress: ProgressLike | None = None) -> DiscardReport: ...
    @overload
    def apply(
        self, plan: RepairPlan, *, undo: str | os.PathLike[str] | None = None, punch: bool = True
    ) -> CheckReport: ...
    def apply(
        self,
        plan: DiscardPlan | RepairPlan,
        *,
        undo: str | os.PathLike[str] | None = None,
        punch: bool = True,
        progress: ProgressLike | None = None,
    ) -> DiscardReport | CheckReport:
        """Carries a plan out, of discards or of a repair, on the image that it was made for.

        Args:
            plan: what `plan_discard` or `plan_repair` gave.
            undo: of a repair: a new file that keeps what is overwritten, for :meth:`undo_repair`.
            punch: of a repair: make holes for clusters that become free. Not done where there is an undo file, or where
                orphaned tables are among them.
            progress: of discards: told the bytes done, of how many.

        Returns:
            What became of the ranges, or the check of the image afterwards.

        Raises:
            qcowkit.errors.ReadOnlyError: the image was opened with "r".
            qcowkit.errors.InvalidArgumentError: the image has changed since the plan was made.
            FileExistsError: the undo file exists.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.apply(image.plan_discard([(1 << 20, 65536)])).after.zero
        65536
        """
        if isinstance(plan, DiscardPlan):
            if undo is not None:
                raise InvalidArgumentError("an undo file goes with repairs alone: discarded data are gone")
            if punch is not True:
                raise InvalidArgumentError("punch goes with repairs alone: of discards, the policy says it")
            tell = progress_function(progress)
            return DiscardReport._of(self._handle.apply_discard(plan._ranges, list(plan._settings), plan._state, tell))
        if not isinstance(plan, RepairPlan):
            raise TypeError(f"a plan is what plan_discard() or plan_repair() gave, not {type(plan).__name__}")
        if progress is not None:
            raise InvalidArgumentError("progress goes with discards alone: a repair that is planned is written at once")
        kept = None if undo is None else os.fspath(undo)
        return CheckReport._of(self._handle.apply_repair(plan._plan, kept, punch))

    def undo_repair(self, undo: str | os.PathLike[str]) -> None:
        """Puts back, byte for byte, what a repair overwrote.

        Args:
            undo: the file that `apply` wrote.

        Raises:
            qcowkit.errors.InvalidArgumentError: it is no undo file, or the image is not as the repair left it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.undo_repair("missing.undo")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.undo'
        """
        self._handle.undo_repair(Path(undo).read_bytes())

    def delta(
        self,
        *,
        bitmap: str | None = None,
        snapshot: str | None = None,
        to_snapshot: str | None = None,
        base: SupportsIndex | None = None,
        image: Looks | None = None,
        read: bool = False,
        cluster_size: SupportsIndex = 65536,
        progress: ProgressLike | None = None,
    ) -> Delta:
        """What changed since an earlier state, in four states, and how large an increment is going to be.

        Exactly one says what the earlier state is:

        Args:
            bitmap: the name of a dirty bitmap of the image: since it began to record.
            snapshot: the ID or name of an internal snapshot; up to `to_snapshot`, or the disk as it is.
            base: what the layers above the one of this depth hold; the layer below the image has depth 1.
            image: another open image, which holds the earlier state. Data are read.
            to_snapshot: goes with `snapshot`.
            read: read what changed, to find zeros and, where it can be compared, what is as before.
            cluster_size: of the increment that is forecast, in bytes: a power of two, 512 bytes to 2 MiB.
            progress: told the bytes done, of how many.

        Raises:
            qcowkit.errors.InvalidArgumentError: not exactly one earlier state, or one that does not exist.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.delta(snapshot="before").totals.dirty_data
        65536
        """
        given = [
            name
            for name, value in (("bitmap", bitmap), ("snapshot", snapshot), ("base", base), ("image", image))
            if value is not None
        ]
        if len(given) != 1:
            raise InvalidArgumentError("against what: exactly one of bitmap, snapshot, base and image")
        if to_snapshot is not None and snapshot is None:
            raise InvalidArgumentError("to_snapshot goes together with snapshot only")
        size, tell = unsigned(cluster_size, "the cluster size"), progress_function(progress)
        against: dict[str, Any]
        if bitmap is not None:
            report, table = self._handle.delta_from_bitmap(bitmap, read, size, tell)
            against = {"kind": "bitmap", "name": bitmap}
        elif snapshot is not None:
            report, table = self._handle.delta_from_snapshot(snapshot, to_snapshot, read, size, tell)
            against = {"kind": "snapshot", "from": snapshot, "to": to_snapshot}
        elif base is not None:
            depth = unsigned(base, "base")
            report, table, name = self._handle.delta_from_layer(depth, read, size, tell)
            against = {"kind": "layer", "depth": depth, "filename": name}
        else:
            other = handle_of(image)
            report, table = self._handle.delta_from_image(other, size, tell)
            against = {"kind": "image", "filename": other.name or ""}
        data = {"filename": self._handle.name or "", "against": against, **report}
        return Delta._of({**data, "ranges": Table(table)})


def audit(
    source: Source,
    *,
    deep: bool = False,
    max_virtual_size: SupportsIndex | None = None,
    lock: bool = True,
    progress: ProgressLike | None = None,
) -> Audit:
    """A verdict on an image from a stranger, before anything else touches it: what `qcowkit audit` tells.

    Opens nothing that the image names, and reads its first cluster and its end alone.

    Args:
        source: a path, bytes, or a binary file object; any bytes at all.
        deep: go through every table as well, and look behind the last cluster in use.
        max_virtual_size: bytes of virtual disk that are allowed; more is a danger.
        lock: with `deep`: refuse an image that another process writes.
        progress: told what is done, of how much.

    Raises:
        OSError: the source cannot be read.

    >>> qcowkit.audit(b"conectix, not qcow2").verdict
    'danger'
    """
    most = None if max_virtual_size is None else unsigned(max_virtual_size, "max_virtual_size")
    return Audit._of(_qcowkit.audit(source, deep, most, lock, progress_function(progress)))


def check(source: Source, *, lock: bool = True, progress: ProgressLike | None = None) -> CheckReport:
    """Checks a file, which may be too broken to be opened: what `qcowkit check` tells.

    Args:
        source: a path, bytes, or a binary file object.
        lock: refuse an image that another process writes.
        progress: told what is done, of how much.

    Raises:
        qcowkit.errors.NotQcow2Error: it is no qcow2 image at all.
        qcowkit.errors.CorruptImageError: the header cannot be understood; `plan_repair` may know what to do.

    >>> qcowkit.check("disk.qcow2").ok
    True
    """
    return CheckReport._of(_qcowkit.check(source, lock, progress_function(progress)))


def plan_repair(
    source: Source,
    level: Literal["all", "leaks"] = "all",
    *,
    relink: Iterable[tuple[SupportsIndex, SupportsIndex]] = (),
    lock: bool = True,
    progress: ProgressLike | None = None,
) -> RepairPlan:
    """As :meth:`Image.plan_repair`, for a file that may be too broken to be opened.

    >>> qcowkit.plan_repair("disk.qcow2").is_empty
    True
    """
    wanted, tables = _level(level), _relinked(relink)
    return RepairPlan(_qcowkit.plan_repair(source, wanted, tables, lock, progress_function(progress)))


def apply_repair(
    source: Source, plan: RepairPlan, *, undo: str | os.PathLike[str] | None = None, punch: bool = True
) -> CheckReport:
    """As :meth:`Image.apply`, for a file that may be too broken to be opened; it is changed in place.

    Raises:
        qcowkit.errors.InvalidArgumentError: it is not the file that the plan was made for.

    >>> qcowkit.apply_repair("disk.qcow2", qcowkit.plan_repair("disk.qcow2")).ok
    True
    """
    if not isinstance(plan, RepairPlan):
        raise TypeError(f"a plan is what plan_repair() gave, not {type(plan).__name__}")
    return CheckReport._of(_qcowkit.apply_repair(source, plan._plan, None if undo is None else os.fspath(undo), punch))


def undo_repair(source: Source, undo: str | os.PathLike[str]) -> None:
    """As :meth:`Image.undo_repair`, for a file that need not open.

    >>> qcowkit.undo_repair("disk.qcow2", "missing.undo")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: 'missing.undo'
    """
    _qcowkit.undo_repair(source, Path(undo).read_bytes())


def measure(
    source: str | os.PathLike[str] | None = None,
    *,
    size: SupportsIndex | None = None,
    format: Literal["qcow2", "raw"] = "qcow2",  # noqa: A002
    backing: Literal["deny", "follow"] = "deny",
    **options: str | bool | int,
) -> Measurement:
    """How large the file of a new image becomes: what `qcowkit measure` tells.

    Args:
        source: the path of an image that is going to be copied.
        size: bytes of a new, empty disk instead.
        format: of the new image.
        backing: "follow" to open the image's backing files, so that their data count; goes with a source.
        options: of the new image, under QEMU's names: `cluster_size="128k"`, `extended_l2=True`, `compat="0.10"`, ...

    Raises:
        qcowkit.errors.InvalidArgumentError: not exactly one of source and size; options that do not exist or do not go
            together.

    >>> qcowkit.measure("disk.qcow2").required < qcowkit.measure(size=1 << 30).fully_allocated
    True
    """
    if (source is None) == (size is None):
        raise InvalidArgumentError("either source or size")
    if backing not in ("deny", "follow"):
        raise InvalidArgumentError(f"backing is 'deny' or 'follow', not {backing!r}")
    if source is None and backing != "deny":
        raise InvalidArgumentError("backing goes with a source: an empty disk has no backing files")
    if not isinstance(source, (str, os.PathLike, type(None))):
        raise TypeError(f"the source is a path, not {type(source).__name__}: save_as() puts other images into a file")
    given = {
        name: ("on" if value else "off") if isinstance(value, bool) else str(value) for name, value in options.items()
    }
    path, wanted = None if source is None else os.fspath(source), 0 if size is None else unsigned(size, "the size")
    measured = _qcowkit.measure(path, wanted, format, list(given.items()), backing == "follow")
    return reports.Measurement._of(measured)


def _level(level: str) -> str:
    if level not in ("all", "leaks"):
        raise InvalidArgumentError(f"the level of a repair is 'leaks' or 'all', not {level!r}")
    return level


def _relinked(relink: Iterable[tuple[SupportsIndex, SupportsIndex]]) -> list[tuple[int, int]]:
    return [(unsigned(host, "a host offset"), unsigned(guest, "a guest offset")) for host, guest in relink]
