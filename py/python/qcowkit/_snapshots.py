"""Internal snapshots."""

from __future__ import annotations

import dataclasses
import datetime
import time
from typing import Any

from qcowkit._check import text
from qcowkit._handle import Handle
from qcowkit.errors import InvalidArgumentError

__all__ = ["Snapshot", "Snapshots"]

_LONGEST_NAME = 255


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A snapshot within an image.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     snapshot = image.snapshots[0]
    >>> snapshot.id, snapshot.name
    ('1', 'before')
    """

    #: Its ID, which no other snapshot has; a number as text.
    id: str
    #: Its name, which others may have too.
    name: str
    #: When it was taken.
    date: datetime.datetime
    #: Bytes of the disk at that time; `None` where old images do not say.
    disk_size: int | None
    #: Bytes of the state of the virtual machine that were saved with it; 0 for a disk alone.
    vm_state_size: int
    #: How long the guest had been running, in nanoseconds.
    vm_clock_nanoseconds: int
    _info: dict[str, Any] = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The entry of `snapshots` in `qcowkit info --output=json`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.snapshots[0].to_dict()["name"]
        'before'
        """
        return dict(self._info)

    @classmethod
    def _of(cls, told: tuple[Any, int | None]) -> Snapshot:
        info, size = told
        date = datetime.datetime.fromtimestamp(info["date-sec"], tz=datetime.UTC)
        return cls(
            id=info["id"],
            name=info["name"],
            date=date + datetime.timedelta(microseconds=info["date-nsec"] // 1000),
            disk_size=size,
            vm_state_size=info["vm-state-size"],
            vm_clock_nanoseconds=info["vm-clock-sec"] * 10**9 + info["vm-clock-nsec"],
            _info=info,
        )


class Snapshots(Handle):
    """Taking, applying and deleting snapshots. Each change is durable when the call returns."""

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots, in the order of the snapshot table.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     [(snapshot.id, snapshot.name) for snapshot in image.snapshots]
        [('1', 'before')]
        """
        return [Snapshot._of(told) for told in self._handle.snapshots()]

    def create_snapshot(self, name: str) -> Snapshot:
        """Takes a snapshot of the disk as it is now.

        Args:
            name: at most 255 bytes in UTF-8. Others may have the same; the ID is chosen.

        Raises:
            qcowkit.errors.UnsupportedError: the data lie in an external data file.
            qcowkit.errors.LimitError: the refcounts are too narrow for one more reference, or there are too many
                snapshots. Nothing is changed then.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.create_snapshot("now").id
        '2'
        """
        size = len(text(name, "the name of a snapshot").encode())
        if size > _LONGEST_NAME:
            raise InvalidArgumentError(f"the name has {size} bytes; QEMU reads at most {_LONGEST_NAME}")
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        return Snapshot._of(self._handle.create_snapshot(name, min(seconds, 2**32 - 1), nanoseconds))

    def apply_snapshot(self, snapshot: str | Snapshot) -> None:
        """Has the disk be what it was when the snapshot was taken, its size too. What it is now is lost.

        Args:
            snapshot: the snapshot, its ID, or its name (the first that has it).

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such snapshot.
            qcowkit.errors.UnsupportedError: dirty bitmaps would not record the change.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.apply_snapshot("before")
        ...     image.read(1 << 20, 5)
        b'earli'
        """
        self._handle.apply_snapshot(*_selected(snapshot))

    def delete_snapshot(self, snapshot: str | Snapshot) -> None:
        """Deletes a snapshot; space that nothing else uses is given back.

        Args:
            snapshot: the snapshot, its ID, or its name. Text that may mean several is refused.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such snapshot, or there are several.
            qcowkit.errors.LockedError: a view of a snapshot is open.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.delete_snapshot("before")
        ...     image.snapshots
        []
        """
        self._handle.delete_snapshot(*_selected(snapshot))


def _selected(snapshot: str | Snapshot) -> tuple[str, str | None]:
    return (snapshot.name, snapshot.id) if isinstance(snapshot, Snapshot) else (snapshot, None)
