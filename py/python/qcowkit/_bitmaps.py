"""Dirty bitmaps: what changed since when."""

from __future__ import annotations

import dataclasses
from typing import Any, SupportsIndex

from qcowkit._check import unsigned
from qcowkit._handle import Handle, handle_of

__all__ = ["Bitmap", "Bitmaps"]


@dataclasses.dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap within an image.

    >>> with qcowkit.open("disk.qcow2", "scratch") as image:
    ...     image.add_bitmap("daily", granularity=65536)
    ...     image.bitmaps[0].granularity
    65536
    """

    #: Its name.
    name: str
    #: Guest bytes that one bit speaks for.
    granularity: int
    #: It records changes of the disk.
    enabled: bool
    #: It was not saved correctly, or somebody is changing it: it may be stale.
    in_use: bool
    #: Why it cannot be used, so that it can only be removed; `None` where it can.
    problem: str | None
    #: Guest bytes that are marked; `None` where it cannot be used.
    dirty_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """The entry in `qcowkit bitmap --list --output=json`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("daily")
        ...     image.bitmaps[0].to_dict()["name"]
        'daily'
        """
        return dataclasses.asdict(self)


class Bitmaps(Handle):
    """Dirty bitmaps. Changes are stored when the image is closed."""

    @property
    def bitmaps(self) -> list[Bitmap]:
        """The bitmaps, also those that cannot be used.

        Raises:
            qcowkit.errors.CorruptImageError: their directory breaks the rules of the format.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup")
        ...     image.bitmaps
        [Bitmap(name='backup', granularity=65536, enabled=True, in_use=False, problem=None, dirty_bytes=0)]
        """
        return [Bitmap(**told) for told in self._handle.bitmaps()]

    def dirty_ranges(self, name: str) -> list[tuple[int, int]]:
        """The ranges of the disk that a bitmap marks, as (offset, length) in bytes, in order.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such bitmap.
            qcowkit.errors.CorruptImageError: it cannot be used.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup")
        ...     image.write(1 << 20, b"more")
        ...     image.dirty_ranges("backup")
        4
        [(1048576, 65536)]
        """
        return self._handle.bitmap_ranges(name)

    def add_bitmap(self, name: str, *, granularity: SupportsIndex | None = None, enabled: bool = True) -> None:
        """Adds a bitmap without marks.

        Args:
            name: at most 1023 bytes in UTF-8, which no other bitmap has.
            granularity: guest bytes for each bit: a power of two from 512 to 2 GiB; the cluster size by default, but
                4 KiB to 64 KiB.
            enabled: it records from now on what of the disk changes.

        Raises:
            qcowkit.errors.InvalidArgumentError: the name is taken or too long; a granularity that cannot be.
            qcowkit.errors.UnsupportedError: the image has version 2.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup", granularity=4096)
        """
        wanted = None if granularity is None else unsigned(granularity, "granularity")
        self._handle.add_bitmap(name, wanted, enabled)

    def remove_bitmap(self, name: str) -> None:
        """Removes a bitmap, also one that cannot be used.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such bitmap.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup")
        ...     image.remove_bitmap("backup")
        ...     image.bitmaps
        []
        """
        self._handle.remove_bitmap(name)

    def clear_bitmap(self, name: str) -> None:
        """Takes all marks of a bitmap away: from now on it tells what changes from now on.

        Raises: as :meth:`dirty_ranges`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup")
        ...     image.clear_bitmap("backup")
        """
        self._handle.clear_bitmap(name)

    def enable_bitmap(self, name: str) -> None:
        """Has a bitmap record changes.

        Raises: as :meth:`dirty_ranges`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup", enabled=False)
        ...     image.enable_bitmap("backup")
        """
        self._handle.enable_bitmap(name, True)

    def disable_bitmap(self, name: str) -> None:
        """Has a bitmap stay as it is while the disk changes.

        Raises: as :meth:`dirty_ranges`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("backup")
        ...     image.disable_bitmap("backup")
        ...     image.bitmaps[0].enabled
        False
        """
        self._handle.enable_bitmap(name, False)

    def merge_bitmap(self, name: str, other: str, source: Bitmaps | None = None) -> None:
        """Marks in a bitmap also what another one marks.

        Args:
            name: the bitmap that gets the marks.
            other: the bitmap that has them.
            source: the image of the other bitmap, if that is not this one.

        Raises: as :meth:`dirty_ranges`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.add_bitmap("monday")
        ...     image.add_bitmap("week")
        ...     image.merge_bitmap("week", "monday")
        """
        self._handle.merge_bitmap(name, other, self._handle if source is None else handle_of(source))
