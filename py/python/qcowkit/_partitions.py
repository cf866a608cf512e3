"""The partition table of a guest disk."""

from __future__ import annotations

import dataclasses
from typing import Any

from qcowkit import _qcowkit
from qcowkit._disk import GuestDisk
from qcowkit._handle import Handle

__all__ = ["Partition", "PartitionTable", "Partitions"]


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition of a guest disk.

    >>> with qcowkit.open("parted.qcow2") as image:
    ...     part = image.partitions()[0]
    >>> part.number, part.start, part.type_name, part.bootable
    (1, 32768, 'Linux', True)
    """

    #: The number that Linux gives it: `/dev/sda1` is 1.
    number: int
    #: Where it begins, in bytes of the disk.
    start: int
    #: Bytes.
    size: int
    #: Its type: two hexadecimal digits (MBR) or a GUID (GPT).
    type: str
    #: What the type is called, where that is known.
    type_name: str | None
    #: Its name, where it has one (GPT).
    name: str | None
    #: Its own GUID, where it has one.
    id: str | None
    #: It is marked as one to boot from.
    bootable: bool
    #: It reaches beyond the end of the disk.
    beyond_end: bool
    _image: _qcowkit.Image = dataclasses.field(repr=False, compare=False)

    def disk(self) -> GuestDisk:
        """The partition as a file object, cut off at the end of the disk.

        >>> with qcowkit.open("parted.qcow2") as image:
        ...     image.partitions()[0].disk().size
        524288
        """
        there = max(self._image.size - self.start, 0)
        return GuestDisk(self._image, self.start, min(self.size, there))

    def to_dict(self) -> dict[str, Any]:
        """The fields by their names in JSON.

        >>> with qcowkit.open("parted.qcow2") as image:
        ...     image.partitions()[0].to_dict()["type"]
        '83'
        """
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "_image"}


class PartitionTable(list[Partition]):
    """The partitions of a disk, and what the table says of itself.

    >>> with qcowkit.open("parted.qcow2") as image:
    ...     table = image.partitions()
    >>> table.scheme, table.block_size, table.faults, len(table)
    ('mbr', 512, (), 1)
    """

    #: "mbr", "gpt", or `None` where the disk has no table.
    scheme: str | None = None
    #: Bytes of a block, in which the table counts.
    block_size: int | None = None
    #: The identity of the disk.
    disk_id: str | None = None
    #: What is wrong with the table, in words.
    faults: tuple[str, ...] = ()


class Partitions(Handle):
    """What lies on the disk."""

    def partitions(self) -> PartitionTable:
        """The partitions of the disk: MBR with logical partitions, or GPT. Empty where there is no table.

        Raises: as `Image.read`. A broken table raises nothing: see :attr:`PartitionTable.faults`.

        >>> with qcowkit.open("parted.qcow2") as image:
        ...     table = image.partitions()
        ...     table.scheme, [(part.number, part.start, part.size, part.type_name) for part in table]
        ('mbr', [(1, 32768, 524288, 'Linux')])
        """
        told = self._handle.partitions()
        if told is None:
            return PartitionTable()
        table = PartitionTable(
            Partition(
                number=part["number"],
                start=part["start"],
                size=part["size"],
                type=part["type"],
                type_name=part.get("type_name"),
                name=part.get("name"),
                id=part.get("id"),
                bootable=part["bootable"],
                beyond_end=part["beyond_end"],
                _image=self._handle,
            )
            for part in told["partitions"]
        )
        table.scheme = told["scheme"]
        table.block_size = told["block_size"]
        table.disk_id = told.get("disk_id")
        table.faults = tuple(told.get("faults", ()))
        return table
