"""Plots of reports by matplotlib, which the extra `qcowkit[plot]` installs.

Each function takes `ax=None` and returns the axes, to go on with: without `ax` it draws on a figure of its own. Reports
have them as methods, `plot()`.

>>> with qcowkit.open("disk.qcow2") as image:
...     axes = image.analyze().plot()
>>> axes.get_xlabel()
'KiB'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qcowkit._html import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qcowkit.lab import LabRun
    from qcowkit.reports import CheckReport, Delta, DiscardReport, ImageInfo, Layout, Ledger, RepairPlan
    from qcowkit.table import Table

__all__ = ["discard", "disk_map", "findings", "forecast", "gaps", "ledger", "repair", "sizes", "timeline"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def ledger(ledger: Ledger, ax: Axes | None = None) -> Axes:
    """The classes of the space ledger as bars: what the host holds, and what are holes.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.ledger(image.space()).get_title()
    'Where the space went'
    """
    ax = _axes(ax)
    lines = [line for line in ledger.classes if line.bytes][::-1]
    scale, unit = _scale(max((line.bytes for line in lines), default=0))
    names = [line.kind.replace("_", " ") for line in lines]
    held = [(line.held + line.unknown) / scale for line in lines]
    ax.barh(names, held, color=COLOURS[0], label="held")
    ax.barh(names, [line.holes / scale for line in lines], left=held, color=COLOURS[4], alpha=0.5, label="holes")
    ax.set_xlabel(unit)
    ax.set_title("Where the space went")
    ax.legend(loc="lower right")
    return ax


def gaps(layout: Layout, ax: Axes | None = None) -> Axes:
    """Free bytes inside the file, by the size of the gaps that they are in.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.gaps(image.layout()).get_ylabel()
    'B'
    """
    ax = _axes(ax)
    buckets = layout.free.histogram
    scale, unit = _scale(max((bucket.bytes for bucket in buckets), default=0))
    names = [_size(bucket.from_bytes) for bucket in buckets]
    ax.bar(names, [bucket.bytes / scale for bucket in buckets], color=COLOURS[0])
    ax.set_xlabel("size of the gap, from")
    ax.set_ylabel(unit)
    ax.set_title("Free space inside the file")
    return ax


def findings(report: CheckReport, ax: Axes | None = None) -> Axes:
    """Where in the file the findings of a check are.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.findings(image.check()).get_title()
    'No errors'
    """
    ax = _axes(ax)
    _marks(ax, report.findings, "kind", report.image_end_offset)
    ax.set_title("No errors" if report.ok else f"{report.corruptions} corruptions, {report.leaks} leaked clusters")
    return ax


def repair(plan: RepairPlan, ax: Axes | None = None) -> Axes:
    """Where in the file the findings are that a repair is planned for, a line for each kind of action.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.repair(image.plan_repair()).get_title()
    'Nothing to repair'
    """
    ax = _axes(ax)
    _marks(ax, plan.findings, "action", max(plan.length_before, plan.length_after))
    words = f"{plan.corruptions_fixed} corruptions, {plan.leaks_fixed} leaked clusters to be repaired"
    ax.set_title("Nothing to repair" if plan.is_empty else words)
    return ax


def _marks(ax: Axes, findings: Table, by: str, end: int) -> None:
    scale, unit = _scale(end)
    kinds: dict[str, list[float]] = {}
    for row in findings:
        if row.host_offset is not None:
            kinds.setdefault(str(getattr(row, by)).replace("_", " "), []).append(row.host_offset / scale)
    for at, (kind, offsets) in enumerate(kinds.items()):
        ax.plot(offsets, [kind] * len(offsets), "|", markersize=14, color=COLOURS[at % len(COLOURS)])
    ax.set_xlabel(f"host offset, {unit}")


def sizes(info: ImageInfo, ax: Axes | None = None) -> Axes:
    """The size of the disk, and what the file takes on the host.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.sizes(image.info()).get_xlabel()
    'GiB'
    """
    ax = _axes(ax)
    scale, unit = _scale(max(info.virtual_size, info.actual_size))
    ax.barh(["on the host", "disk"], [info.actual_size / scale, info.virtual_size / scale], color=COLOURS[0])
    ax.set_xlabel(unit)
    ax.set_title("Size")
    return ax


def discard(report: DiscardReport, ax: Axes | None = None) -> Axes:
    """The states of the ranges before and after discards.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     len(qcowkit.plots.discard(image.plan_discard("all")).get_yticks())
    2
    """
    ax = _axes(ax)
    sides = [dataclasses.asdict(side) for side in (report.after, report.before)]
    scale, unit = _scale(report.requested_bytes)
    left = [0.0, 0.0]
    for at, state in enumerate(sides[0]):
        widths = [side[state] / scale for side in sides]
        if any(widths):
            ax.barh(["after", "before"], widths, left=left, color=COLOURS[at], label=state.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    ax.set_xlabel(unit)
    ax.set_title("What discards would do" if report.dry_run else "What discards did")
    ax.legend()
    return ax


def forecast(delta: Delta, ax: Axes | None = None) -> Axes:
    """The sizes of the increments that the forecast tells of.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.forecast(image.delta(snapshot="before")).get_title()
    'Size of the next increment'
    """
    ax = _axes(ax)
    ways = {
        "all that changed": delta.forecast.all_dirty,
        "without known zeros": delta.forecast.without_known_zeros,
        "without zeros and equal data": delta.forecast.without_zeros_and_equal,
    }
    sizes = {name: size.qcow2_bytes for name, size in ways.items() if size is not None}
    scale, unit = _scale(max(sizes.values(), default=0))
    ax.barh(list(sizes)[::-1], [size / scale for size in sizes.values()][::-1], color=COLOURS[0])
    ax.set_xlabel(unit)
    ax.set_title("Size of the next increment")
    return ax


def timeline(runs: Sequence[LabRun], metric: str = "file_length", ax: Axes | None = None) -> Axes:
    """One column of the timelines of replays, a line for each.

    Raises:
        KeyError: timelines have no such column.

    >>> trace = qcowkit.Trace.parse("write 0 1M")
    >>> qcowkit.plots.timeline(qcowkit.compare(trace).runs, "host_bytes").get_xlabel()
    'operations'
    """
    ax = _axes(ax)
    columns = [(run.name, run.timeline["operation"].to_list(), run.timeline[metric].to_list()) for run in runs]
    is_bytes = metric in ("file_length", "largest_gap") or metric.endswith("bytes")
    most = max((value for _, _, values in columns for value in values), default=0)
    scale, unit = (
        (10_000, "%") if metric.endswith("ppm") else _scale(most) if is_bytes else (1, metric.replace("_", " "))
    )
    for at, (name, operations, values) in enumerate(columns):
        style = ("-", "--", ":", "-.")[at % 4]
        ax.plot(operations, [value / scale for value in values], style, label=name, color=COLOURS[at % len(COLOURS)])
    ax.set_xlabel("operations")
    ax.set_ylabel(unit)
    ax.set_ylim(bottom=0)
    ax.set_title(metric.replace("_", " "))
    ax.legend()
    return ax


def disk_map(runs: Table, ax: Axes | None = None) -> Axes:
    """Where the guest's bytes lie in the file: a line for each row of `image.runs()`. One diagonal is a disk in order.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     qcowkit.plots.disk_map(image.runs()).get_title()
    'Guest and file'
    """
    from matplotlib.collections import LineCollection

    ax = _axes(ax)
    rows = list(zip(runs["guest_offset"], runs["host_offset"], runs["length"], strict=True))
    across, guest_unit = _scale(max((guest + length for guest, _, length in rows), default=0))
    up, host_unit = _scale(max((host + length for _, host, length in rows), default=0))
    lines = [[(guest / across, host / up), ((guest + n) / across, (host + n) / up)] for guest, host, n in rows]
    ax.add_collection(LineCollection(lines, colors=COLOURS[0], linewidths=2))
    ax.autoscale()
    ax.set_xlabel(f"guest offset, {guest_unit}")
    ax.set_ylabel(f"host offset, {host_unit}")
    ax.set_title("Guest and file")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as why:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'qcowkit[plot]'", name=why.name) from None
    import sys

    # Notebooks show the figures of pyplot; elsewhere, without it, no window and no global state is wanted.
    if "matplotlib.pyplot" in sys.modules or "ipykernel" in sys.modules:
        from matplotlib import pyplot

        return pyplot.subplots(layout="constrained")[1]
    return Figure(layout="constrained").add_subplot()


def _scale(most: int) -> tuple[int, str]:
    power = min(max(most.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return 1 << 10 * power, _UNITS[power]


def _size(number: int) -> str:
    scale, unit = _scale(number)
    return f"{number // scale} {unit}"
