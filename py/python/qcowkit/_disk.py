"""A guest disk, or a part of one, as a file object."""

from __future__ import annotations

import io
import operator
import os
from typing import TYPE_CHECKING

from qcowkit import _qcowkit
from qcowkit.errors import NoSpaceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["GuestDisk"]


class GuestDisk(io.RawIOBase):
    """The bytes of a virtual disk, or of a range of it, as an unbuffered binary file.

    Made by `Image.disk()` and `Partition.disk()`. Its length is fixed; it ends with the image: after `Image.close()`
    all calls raise `ValueError`. One object has one position: threads use one each.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     disk = image.disk()
    ...     disk.seek(-1, 2), disk.read(10), disk.size
    (1073741823, b'\\x00', 1073741824)
    """

    def __init__(self, handle: _qcowkit.Image, start: int = 0, size: int | None = None) -> None:
        self._image = handle
        self._start = start
        self._size = size
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes of the disk, or of the range.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.size
        1073741824
        """
        return self._image.size - self._start if self._size is None else self._size

    @property
    def mode(self) -> str:
        """ "rb", or "rb+" where it can be written.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.mode
        'rb'
        """
        return "rb+" if self.writable() else "rb"

    def readable(self) -> bool:
        """It is.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.readable()
        True
        """
        self._refuse_closed()
        return True

    def seekable(self) -> bool:
        """It is.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.seekable()
        True
        """
        self._refuse_closed()
        return True

    def writable(self) -> bool:
        """Whether the image was opened to be changed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.writable()
        False
        """
        self._refuse_closed()
        return self._image.mode != "r"

    def tell(self) -> int:
        """The position, in bytes.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.read(512) == bytes(512), disk.tell()
        (True, 512)
        """
        self._refuse_closed()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Goes to a position: from the begin (0), from the present one (1), or from the end (2).

        It may lie behind the end; there is nothing to read there.

        Raises:
            ValueError: a position before the begin.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.seek(1 << 20), disk.read(5), disk.seek(-4, 1)
        (1048576, b'hello', 1048577)
        """
        self._refuse_closed()
        if whence == os.SEEK_SET:
            base = 0
        elif whence == os.SEEK_CUR:
            base = self._position
        elif whence == os.SEEK_END:
            base = self.size
        else:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        position = base + operator.index(offset)
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes from the position on: all up to the end, or at most `size` of them; none at the end.

        Raises: as `Image.read`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.seek(1 << 20), disk.read(5), disk.tell()
        (1048576, b'hello', 1048581)
        """
        self._refuse_closed()
        wanted = -1 if size is None else operator.index(size)
        count = self._room(self.size if wanted < 0 else wanted)
        if count == 0:
            return b""
        data = self._image.read(self._start + self._position, count)
        self._position += count
        return data

    def readall(self) -> bytes:
        """All bytes from the position up to the end.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.seek(-3, 2), disk.readall()
        (1073741821, b'\\x00\\x00\\x00')
        """
        return self.read()

    def readinto(self, buffer: Buffer, /) -> int:
        """Fills a buffer from the position on, and gives how many bytes were there: 0 at the end.

        Raises: as `Image.read`.

        >>> buffer = bytearray(5)
        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.seek(1 << 20), disk.readinto(buffer)
        (1048576, 5)
        >>> buffer
        bytearray(b'hello')
        """
        self._refuse_closed()
        view = memoryview(buffer).cast("B")
        count = self._room(len(view))
        if count == 0:
            return 0
        self._image.readinto(self._start + self._position, view[:count])
        self._position += count
        return count

    def write(self, data: Buffer, /) -> int:
        """Writes at the position, and gives how many bytes that were: fewer where the disk ends.

        Raises:
            qcowkit.errors.NoSpaceError: the position is at the end already: disks do not grow by being written.
            OSError: as `Image.write`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     disk = image.disk()
        ...     disk.write(b"boot"), image.read(0, 4)
        (4, b'boot')
        """
        if not self.writable():
            raise io.UnsupportedOperation("the image was opened to read it: mode 'r+' or 'scratch' changes it")
        view = memoryview(data).cast("B")
        count = self._room(len(view))
        if count == 0 < len(view):
            raise NoSpaceError(f"the disk ends at {self.size} bytes: Image.resize() makes it larger", self._image.name)
        if count == 0:
            return 0
        self._image.write(self._start + self._position, view[:count])
        self._position += count
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Refused, unless the size is what it is: `Image.resize` changes it.

        Raises:
            io.UnsupportedOperation: another size.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     disk = image.disk()
        ...     disk.truncate(disk.size)
        1073741824
        """
        self._refuse_closed()
        wanted = self._position if size is None else size
        if wanted != self.size:
            raise io.UnsupportedOperation("a guest disk has a fixed size: Image.resize() changes it")
        return wanted

    def flush(self) -> None:
        """Makes durable what was written.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     disk = image.disk()
        ...     count = disk.write(b"boot")
        ...     disk.flush()
        """
        super().flush()
        if not self._image.closed and self._image.mode != "r":
            self._image.flush()

    def _room(self, wanted: int) -> int:
        """How many bytes there are from the position on, at most so many."""
        return min(wanted, max(self.size - self._position, 0))

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._image.closed:
            raise ValueError("the image is closed")

    def __repr__(self) -> str:
        name = "in memory" if self._image.name is None else repr(self._image.name)
        part = "" if self._start == 0 and self._size is None else f" at {self._start}"
        return f"<qcowkit.GuestDisk of {name}{part}>"
