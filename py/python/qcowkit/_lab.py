"""What the discard lab counts."""

from __future__ import annotations

import dataclasses

from qcowkit._report import Report

__all__ = ["Advice", "Backup", "Ranked", "Sample", "TraceSummary"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceSummary(Report):
    """The size of a trace.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> trace.summary.writes, trace.summary.discarded_bytes
    (1, 524288)
    """

    #: Where it comes from.
    name: str
    #: Operations.
    operations: int
    #: Lines that are not replayed, such as reads.
    ignored: int
    #: Writes of data.
    writes: int
    #: Bytes that these wrote.
    written_bytes: int
    #: Write-zeroes.
    write_zeroes: int
    #: Discards.
    discards: int
    #: Bytes that these covered.
    discarded_bytes: int
    #: Flushes.
    flushes: int
    #: Marks.
    marks: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """An image at one moment of a replay; sizes in bytes.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> qcowkit.replay(trace).end.live_bytes
    524288
    """

    #: Operations replayed so far.
    operation: int
    #: Length of the file.
    file_length: int
    #: The same of the virtual size.
    file_ppm: int
    #: What the host has allocated for the file.
    host_bytes: int
    #: Data that the guest can read.
    live_bytes: int
    #: Clusters that are mapped, but hold nothing that the guest can read.
    retained_bytes: int
    #: Free space before the last cluster in use.
    free_bytes: int
    #: Runs of free clusters that make it up.
    gaps: int
    #: The largest of them.
    largest_gap: int
    #: Guest clusters that have a host cluster or are compressed.
    allocated_clusters: int
    #: Those that do not lie behind the one before: what `qemu-img check` calls fragmented.
    discontinuities: int
    #: Runs contiguous in the guest and in the file at once.
    runs: int
    #: Writes of metadata so far.
    metadata_writes: int
    #: Bytes that these wrote.
    metadata_bytes: int
    #: Barriers so far.
    barriers: int
    #: Discards that reached the host so far.
    host_discards: int
    #: Bytes that these covered.
    host_discarded_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backup:
    """An incremental backup by dirty bitmap: what changed since the mark before; sizes in bytes.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> [(backup.name, backup.data_bytes) for backup in qcowkit.replay(trace).run.backups]
    [('end', 524288)]
    """

    #: The name of the mark, or "end".
    name: str
    #: Operations replayed so far.
    operation: int
    #: Changed data: what the backup carries.
    data_bytes: int
    #: Changed, reads as zeros, and keeps a host cluster.
    zero_bytes: int
    #: Changed, and without a host cluster.
    discarded_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked:
    """A configuration and its score.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> [ranked.name for ranked in qcowkit.compare(trace, ["unmap"], advise=True).advice.ranking]
    ['unmap']
    """

    #: The configuration's name.
    name: str
    #: Lower is better.
    score_ppm: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Which configuration the numbers speak for (docs/discard-lab.md).

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> qcowkit.compare(trace, ["unmap"], advise=True).advice.best
    'unmap'
    """

    #: The name of the one that comes out best.
    best: str
    #: Why, one sentence each.
    reasons: tuple[str, ...]
    #: Every configuration with its score, best first.
    ranking: tuple[Ranked, ...]
