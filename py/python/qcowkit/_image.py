"""The image, as people use it from Python."""

from __future__ import annotations

from qcowkit import _html
from qcowkit._bitmaps import Bitmaps
from qcowkit._bytes import GuestBytes
from qcowkit._keys import Keys
from qcowkit._looks import Looks
from qcowkit._partitions import Partitions
from qcowkit._save import Save
from qcowkit._shape import Shape
from qcowkit._snapshots import Snapshots
from qcowkit.reports import ImageInfo

__all__ = ["Image"]


class Image(GuestBytes, Snapshots, Bitmaps, Partitions, Shape, Keys, Save, Looks):
    """An open qcow2 image; made by :func:`qcowkit.open` and :func:`qcowkit.create`.

    Closing is explicit: by `close()`, or by `with`. Methods of a closed image raise `ValueError`, as those of Python's
    files do. An image may be used from several threads: guest bytes are read and written side by side, everything else
    waits for its turn, and other threads of the program go on meanwhile.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     image
    <qcowkit.Image 'disk.qcow2'>
    >>> image.closed
    True
    """

    def info(self) -> ImageInfo:
        """What the image says of itself: what `qcowkit info` tells, with the members of `qemu-img info --output=json`.

        Raises:
            qcowkit.errors.CorruptImageError: a table that has to be read makes no sense.
            ValueError: the image is closed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.info()["virtual-size"]
        1073741824
        """
        return ImageInfo._of(self._handle.info())

    def _repr_html_(self) -> str:
        return _html.page(repr(self), "") if self.closed else self.info()._repr_html_()

    def view(self, snapshot: str) -> Image:
        """The disk as it was when an internal snapshot was taken: an image of its own, read-only.

        It is to be closed before this image deletes snapshots or changes its shape.

        Args:
            snapshot: its ID or name.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such snapshot.

        >>> with qcowkit.open("disk.qcow2") as image, image.view("before") as before:
        ...     before.read(1 << 20, 5)
        b'earli'
        """
        return Image(self._handle.view(snapshot))
