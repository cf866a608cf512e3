"""Reports on images before they are opened, or made: the audit, and how large a file becomes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from qcowkit import _html
from qcowkit._report import Report

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One thing that an audit found.

    >>> audit = qcowkit.audit(bytes(65536))
    >>> [(finding.verdict, finding.kind) for finding in audit.findings]
    [('danger', 'not_qcow2')]
    """

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
    """A file that an image names.

    >>> qcowkit.create("top.qcow2", backing="disk.qcow2", backing_format="qcow2").close()
    >>> qcowkit.audit("top.qcow2").references
    (NamedFile(role='backing_file', name='disk.qcow2', format='qcow2'),)
    """

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
