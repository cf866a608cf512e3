"""The discard lab: what each policy would have made of an image.

A :class:`Trace` is what a guest did to its disk. :func:`replay` does it again on an image in memory under one policy,
:func:`compare` under several: how long the file got, what it takes on the host, how fragmented it is. No guest data are
stored, so that disks of terabytes are replayed on a laptop. See docs/discard-lab.md.

>>> trace = qcowkit.Trace.churn(size=64 << 20, operations=2000, seed=7)
>>> comparison = qcowkit.compare(trace, ["unmap", "no-unref"])
>>> [run.name for run in comparison.runs]
['unmap', 'no-unref']
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias

from qcowkit import _html, _qcowkit
from qcowkit._check import unsigned
from qcowkit._handle import handle_of
from qcowkit._lab import Advice, Backup, Ranked, Sample, TraceSummary
from qcowkit._progress import ProgressLike, progress_function
from qcowkit._space import GapBucket
from qcowkit.errors import InvalidArgumentError
from qcowkit.policy import DiscardPolicy, PolicyLike
from qcowkit.reports import Report
from qcowkit.table import ArrowTable, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qcowkit._looks import Looks

__all__ = [
    "Advice",
    "Backup",
    "Comparison",
    "LabConfig",
    "LabRun",
    "Ranked",
    "ReplayResult",
    "Sample",
    "Trace",
    "TraceSummary",
    "compare",
    "replay",
]

TraceFormat: TypeAlias = Literal["qemu-io", "fio", "blkparse", "csv"]


class Trace:
    """What a guest did to its disk: writes, write-zeroes, discards, flushes and marks, in order.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 64k\\n")
    >>> len(trace), trace.end
    (2, 1048576)
    """

    def __init__(self, trace: _qcowkit.Trace, name: str = "") -> None:
        self._trace = trace
        #: Where it comes from, for titles.
        self.name = name

    @classmethod
    def load(cls, path: str | os.PathLike[str], format: TraceFormat | None = None) -> Trace:  # noqa: A002
        """Reads a file: a script of `qemu-io`, an iolog of fio, the text of blkparse, or CSV.

        Args:
            path: the file.
            format: "qemu-io", "fio", "blkparse" or "csv"; found out from its beginning if not given.

        Raises:
            OSError: the file cannot be read.
            ValueError: a line makes no sense; it is named.

        >>> import pathlib
        >>> _ = pathlib.Path("trace.txt").write_text("write 0 64k\\n")
        >>> len(qcowkit.Trace.load("trace.txt"))
        1
        """
        return cls(_qcowkit.Trace.parse(Path(path).read_bytes(), format), os.fspath(path))

    @classmethod
    def parse(cls, text: str | bytes, format: TraceFormat | None = None, *, name: str = "") -> Trace:  # noqa: A002
        """Reads text in one of the formats of :meth:`load`.

        >>> qcowkit.Trace.parse("operation,offset,length,detail\\ndiscard,0,65536,\\n").table()[0].operation
        'discard'
        """
        data = text.encode() if isinstance(text, str) else bytes(text)
        return cls(_qcowkit.Trace.parse(data, format), name)

    @classmethod
    def from_table(cls, table: ArrowTable, *, name: str = "") -> Trace:
        """From a table of any library, with the columns `operation`, `offset`, `length` and, if it likes, `detail`.

        Operations: "write" (detail "zeros" for data of zeros), "write_zeroes" (detail "unmap"), "discard", "flush",
        "mark" (detail: its name) and "read", which is left out. Offsets and lengths in bytes.

        Raises:
            TypeError: a column is missing or of another type.
            ValueError: a row makes no sense; it is named.

        >>> same = qcowkit.Trace.from_table(qcowkit.Trace.parse("write 0 1M").table())
        >>> same.end
        1048576
        """
        return cls(_qcowkit.Trace.from_table(table), name)

    @classmethod
    def churn(
        cls,
        *,
        size: SupportsIndex = 64 << 30,
        operations: SupportsIndex = 200_000,
        seed: SupportsIndex = 1,
        fill_percent: SupportsIndex = 90,
        file_median: SupportsIndex = 256 << 10,
        file_sigma_percent: SupportsIndex = 200,
        file_max: SupportsIndex = 1 << 30,
        rewrite_percent: SupportsIndex = 30,
        zero_percent: SupportsIndex = 2,
        block: SupportsIndex = 4096,
        request_max: SupportsIndex = 1 << 20,
        trim: Literal["never", "online"] | SupportsIndex = 20_000,
        trim_min: SupportsIndex = 0,
        flush_every: SupportsIndex = 100,
        mark_every: SupportsIndex = 50_000,
    ) -> Trace:
        """Makes a workload up, like that of a file system in a virtual machine; the same arguments give the same trace.

        Args:
            size: bytes of the disk.
            operations: how many, about.
            seed: where the random numbers begin.
            fill_percent: how full the file system is kept, 1 to 99.
            file_median, file_sigma_percent, file_max: sizes of files: median in bytes, spread (sigma of the logarithm
                times 100), the largest.
            rewrite_percent: of 100 steps, how many rewrite a part of a file in place; at most 90.
            zero_percent: of 100 files, how many hold nothing but zeros.
            block: the guest's block in bytes, a power of two from 512 to 1 MiB.
            request_max: longer writes are cut into requests of this many bytes.
            trim: "never", "online" (when a file is deleted), or after each so many operations.
            trim_min: free runs shorter than this many bytes are not trimmed.
            flush_every, mark_every: after each so many operations; 0 for none. At marks, backups are taken.

        Raises:
            qcowkit.errors.InvalidArgumentError: an argument is out of range.

        >>> len(qcowkit.Trace.churn(size=64 << 20, operations=1000)) >= 1000
        True
        """
        trims: object = trim if isinstance(trim, str) else {"every": unsigned(trim, "trim")}
        numbers = {
            "size": size, "operations": operations, "seed": seed, "fill_percent": fill_percent,
            "file_median": file_median,
            "file_sigma_percent": file_sigma_percent, "file_max": file_max, "rewrite_percent": rewrite_percent,
            "zero_percent": zero_percent, "block": block, "request_max": request_max, "trim_min": trim_min,
            "flush_every": flush_every, "mark_every": mark_every,
        }  # fmt: skip
        parameters = {name: unsigned(value, name) for name, value in numbers.items()}
        if isinstance(trim, str) and trim not in ("never", "online"):
            raise InvalidArgumentError(f"trim is 'never', 'online' or a number of operations, not {trim!r}")
        try:
            return cls(_qcowkit.Trace.churn(json.dumps({**parameters, "trim": trims})), "churn")
        except ValueError as why:
            if isinstance(why, InvalidArgumentError):
                raise
            raise InvalidArgumentError(str(why)) from None

    @classmethod
    def _of_operations(cls, table: Table, ignored: int, name: str) -> Trace:
        return cls(_qcowkit.Trace.from_table(table, ignored), name)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: traces travel to other processes, Dask's workers for example."""
        return Trace._of_operations, (self.table(), self._trace.ignored, self.name)

    @property
    def end(self) -> int:
        """The first byte behind everything that it touches: the smallest disk that it fits on.

        >>> qcowkit.Trace.parse("discard 1M 64k").end
        1114112
        """
        return self._trace.end

    @functools.cached_property
    def summary(self) -> TraceSummary:
        """Counts of what it holds.

        >>> qcowkit.Trace.parse("write 0 1M").summary.written_bytes
        1048576
        """
        return TraceSummary._of(self._trace.summary(self.name))

    def table(self) -> Table:
        """The operations: operation, offset?, length?, detail?.

        >>> qcowkit.Trace.parse("write 0 1M").table()[0].length
        1048576
        """
        return Table(self._trace.table())

    def text(self, format: Literal["csv", "qemu-io"] = "csv") -> str:  # noqa: A002
        """The trace as CSV, or as a script for `qemu-io`.

        >>> qcowkit.Trace.parse("write 0 1M").text().splitlines()[1]
        'write,0,1048576,'
        """
        return self._trace.write(format)

    def __len__(self) -> int:
        return len(self._trace)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<qcowkit.Trace{name} of {len(self)} operations>"

    def _repr_html_(self) -> str:
        return self.summary._repr_html_()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabConfig:
    """How an image is made and opened for a replay. An image that exists is what it is: `cluster_size`, `extended_l2`
    and `preallocation` are refused then.

    >>> qcowkit.LabConfig(policy="no-unref", cluster_size=512 << 10).policy
    'no-unref'
    """

    #: What discards do; a :class:`DiscardPolicy` or the name of a preset.
    policy: PolicyLike = "unmap"
    #: What it is called in reports; named after what it is if empty.
    name: str = ""
    #: Bytes of a cluster.
    cluster_size: int = 65536
    #: Subclusters (`extended_l2`).
    extended_l2: bool = False
    #: What is reserved when the image is made.
    preallocation: Literal["off", "metadata", "falloc", "full"] = "off"
    #: How many freed bytes may wait before they are committed and reused. 0 reuses them as early as QEMU does.
    quarantine: int = 0

    def __post_init__(self) -> None:
        known = ("off", "metadata", "falloc", "full")
        if self.preallocation not in known:
            raise InvalidArgumentError(f"preallocation is one of {known}, not {self.preallocation!r}")

    def _makes(self) -> list[str]:
        """What it says of how an image is made."""
        made = ("cluster_size", "extended_l2", "preallocation")
        fields = [field for field in dataclasses.fields(self) if field.name in made]
        return [field.name for field in fields if getattr(self, field.name) != field.default]

    def _core(self) -> dict[str, Any]:
        policy = DiscardPolicy.of(self.policy)
        return {
            "name": self.name,
            "discard": policy.discard == "unmap",
            "policy": {
                "unref": "retain_unshared" if policy.discard_no_unref else "always",
                "pass": {
                    "request": policy.pass_discard_request,
                    "snapshot": policy.pass_discard_snapshot,
                    "other": policy.pass_discard_other,
                },
                "retained_op": policy.retained_op.replace("-", "_"),
            },
            "detect_zeroes": policy.detect_zeroes,
            "cluster_size": unsigned(self.cluster_size, "cluster_size"),
            "extended_l2": self.extended_l2,
            "preallocation": self.preallocation,
            "allocation": policy.allocation,
            "quarantine_bytes": unsigned(self.quarantine, "quarantine"),
        }


#: A configuration, a policy, or the name of one.
ConfigLike: TypeAlias = LabConfig | PolicyLike


_SAMPLES: dict[str, Literal["uint64", "int64", "float64", "dictionary", "string"]] = {
    field.name: "uint64" for field in dataclasses.fields(Sample)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabRun(Report):
    """One replay under one configuration.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> run = qcowkit.replay(trace, "no-unref").run
    >>> run.end.retained_bytes, run.peak_file_length >= run.end.file_length
    (524288, True)
    """

    #: The image at the end.
    end: Sample
    #: The longest that the file was in any sample.
    peak_file_length: int
    #: Free gaps of the file at the end, by size.
    gaps: tuple[GapBucket, ...]
    #: Incremental backups: one at each mark, one at the end.
    backups: tuple[Backup, ...]

    @property
    def name(self) -> str:
        """What the configuration is called.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace, "no-unref").run.name
        'no-unref'
        """
        return str(self["config"]["name"])

    @property
    def config(self) -> dict[str, Any]:
        """How the image was made and opened, as the command line prints it.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace).run.config["cluster_size"]
        65536
        """
        config: dict[str, Any] = self.to_dict()["config"]
        return config

    @functools.cached_property
    def timeline(self) -> Table:
        """The image along the trace: one row for each sample, with the members of :class:`Sample` as columns.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace).run.timeline["operation"].to_list()[-1]
        2
        """
        return Table.from_rows(self["samples"], _SAMPLES)

    def plot(self, metric: str = "file_length", ax: Axes | None = None) -> Axes:
        """One column of the timeline. Needs `qcowkit[plot]`.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace).run.plot().get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.timeline([self], metric, ax)

    def _repr_html_(self) -> str:
        return _html.page(f"Replay: {self.name}", _html.facts(dataclasses.asdict(self.end).items()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Report):
    """Several replays of one trace: `qcowkit replay`.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> comparison = qcowkit.compare(trace, ["unmap", "no-unref"])
    >>> comparison["no-unref"].end.retained_bytes, comparison.virtual_size
    (524288, 1048576)
    """

    #: What was replayed.
    trace: TraceSummary
    #: Bytes of the virtual disk.
    virtual_size: int
    #: One for each configuration.
    runs: tuple[LabRun, ...]
    #: What the numbers speak for, if that was asked for.
    advice: Advice | None

    def __getitem__(self, member: str) -> Any:
        """The run of this name, or a member of the JSON."""
        for run in self.runs:
            if run.name == member:
                return run
        return super().__getitem__(member)

    @functools.cached_property
    def timeline(self) -> Table:
        """All samples: `run`, and the members of :class:`Sample`.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> comparison = qcowkit.compare(trace, ["unmap", "no-unref"])
        >>> sorted(set(comparison.timeline["run"].to_list()))
        ['no-unref', 'unmap']
        """
        rows = [{"run": run.name, **sample} for run in self.runs for sample in run["samples"]]
        return Table.from_rows(rows, {"run": "dictionary", **_SAMPLES})

    def table(self) -> Table:
        """How each run ended: `run`, `peak_file_length`, `backup_bytes` and the members of :class:`Sample`.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> comparison = qcowkit.compare(trace, ["unmap", "no-unref"])
        >>> comparison.table()["retained_bytes"].to_list()
        [0, 524288]
        """
        rows = [
            {
                "run": run.name,
                "peak_file_length": run.peak_file_length,
                "backup_bytes": sum(backup.data_bytes for backup in run.backups[len(run.backups) > 1 :]),
                **dataclasses.asdict(run.end),
            }
            for run in self.runs
        ]
        return Table.from_rows(
            rows, {"run": "dictionary", "peak_file_length": "uint64", "backup_bytes": "uint64", **_SAMPLES}
        )

    def plot(self, metric: str = "file_length", ax: Axes | None = None) -> Axes:
        """One column of the timelines, a line for each run. Needs `qcowkit[plot]`.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.compare(trace).plot("file_length").get_figure() is not None
        True
        """
        from qcowkit import plots

        return plots.timeline(self.runs, metric, ax)

    def _repr_html_(self) -> str:
        names = ["run", "peak_file_length", "host_bytes", "retained_bytes", "free_bytes", "discontinuities", "barriers"]
        names += ["backup_bytes"]
        body = _html.columns(self.table().to_dicts(), names)
        title = f"{self.trace.operations:,} operations on {_html.size(self.virtual_size)} of disk"
        return _html.page(title, body, "" if self.advice is None else " ".join(self.advice.reasons))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayResult(Comparison):
    """A replay under one configuration; `to_dict()` is what `qcowkit replay --policy POLICY` prints.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> qcowkit.replay(trace).end.operation
    2
    """

    @property
    def run(self) -> LabRun:
        """The one run.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace, "ignore").run.name
        'ignore'
        """
        return self.runs[0]

    @property
    def end(self) -> Sample:
        """The image at the end.

        >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
        >>> qcowkit.replay(trace).end.allocated_clusters
        8
        """
        return self.run.end


def replay(
    trace: Trace,
    policy: ConfigLike = "unmap",
    *,
    size: SupportsIndex | None = None,
    image: Looks | None = None,
    samples: SupportsIndex = 60,
    progress: ProgressLike | None = None,
) -> ReplayResult:
    """Does what a guest did once more, on an image in memory.

    Args:
        trace: what the guest did.
        policy: how the image is made and opened: a :class:`LabConfig`, a :class:`DiscardPolicy` or the name of one.
        size: bytes of the empty disk that it begins with; as large as the trace needs by default.
        image: an open image to begin with instead, which stays as it is.
        samples: how often the image is looked at along the trace.
        progress: told the operations done, of how many.

    Raises:
        qcowkit.errors.InvalidArgumentError: the trace reaches beyond the disk, or options do not go together.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> qcowkit.replay(trace, "no-unref").end.retained_bytes
    524288
    """
    return ReplayResult._of(_replay(trace, [_config(policy, image)], size, image, samples, False, progress))


def compare(
    trace: Trace,
    policies: Mapping[str, ConfigLike] | Iterable[ConfigLike] | None = None,
    *,
    size: SupportsIndex | None = None,
    image: Looks | None = None,
    samples: SupportsIndex = 60,
    advise: bool = False,
    progress: ProgressLike | None = None,
) -> Comparison:
    """Replays a trace under several policies, side by side.

    Args:
        trace, size, image, samples, progress: as in :func:`replay`.
        policies: configurations, or a mapping from names to them. "ignore", "unmap" and "no-unref" by default.
        advise: say which configuration the numbers speak for; without `policies`, more of them are tried.

    Raises:
        qcowkit.errors.InvalidArgumentError: as in :func:`replay`; no policy at all.

    >>> trace = qcowkit.Trace.parse("write 0 1M\\ndiscard 0 512k")
    >>> {run.name: run.end.retained_bytes for run in qcowkit.compare(trace).runs}
    {'ignore': 0, 'unmap': 0, 'no-unref': 524288}
    """
    if policies is None:
        configs = [] if advise else [_config(name, image) for name in ("ignore", "unmap", "no-unref")]
    elif isinstance(policies, Mapping):
        configs = [{**_config(config, image), "name": name} for name, config in policies.items()]
    elif isinstance(policies, str):
        raise InvalidArgumentError("policies are a list or a mapping of configurations; replay() takes one")
    else:
        configs = [_config(config, image) for config in policies]
    if policies is not None and not configs:
        raise InvalidArgumentError("there is no policy to compare")
    return Comparison._of(_replay(trace, configs, size, image, samples, advise, progress))


def _config(config: ConfigLike, image: Looks | None) -> dict[str, Any]:
    if not isinstance(config, LabConfig):
        return LabConfig(policy=config)._core()
    made = [] if image is None else config._makes()
    if made:
        raise InvalidArgumentError(f"an image that exists is what it is: no {' and no '.join(made)} with image")
    return config._core()


def _replay(
    trace: Trace,
    configs: list[dict[str, Any]],
    size: SupportsIndex | None,
    image: Looks | None,
    samples: SupportsIndex,
    advise: bool,
    progress: ProgressLike | None,
) -> dict[str, Any]:
    if size is not None and image is not None:
        raise InvalidArgumentError("either size or image")
    handle = None if image is None else handle_of(image)
    wanted = None if size is None else unsigned(size, "the size")
    number = unsigned(samples, "samples")
    text = json.dumps(configs)
    report: dict[str, Any] = _qcowkit.replay(
        trace._trace, trace.name, text, wanted, handle, number, advise, progress_function(progress)
    )
    return report
