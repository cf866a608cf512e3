"""What all methods of an image stand on. Each subject has a class of its own below :class:`Handle`; `Image` has all."""

from __future__ import annotations

import os
import warnings
from types import TracebackType
from typing import Self

from qcowkit import _qcowkit

__all__ = ["Handle", "handle_of"]


class Handle:
    """An open image: who it is, and its end."""

    _handle: _qcowkit.Image

    def __init__(self, handle: _qcowkit.Image) -> None:
        self._handle = handle

    @property
    def path(self) -> str | None:
        """The name that the image was opened by; `None` where it lies in bytes or a file object.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.path
        'disk.qcow2'
        """
        path = self._handle.path
        return None if path is None else os.fspath(path)

    @property
    def mode(self) -> str:
        """How the image was opened: "r", "r+" or "scratch".

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.mode
        'r'
        """
        return self._handle.mode

    @property
    def closed(self) -> bool:
        """Whether the image is closed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.closed
        False
        >>> image.closed
        True
        """
        return self._handle.closed

    def close(self) -> None:
        """Make everything durable and give the file back. Closing again does nothing.

        Raises:
            OSError: the storage failed. The image is closed all the same; what was flushed before is safe.

        >>> image = qcowkit.open("disk.qcow2")
        >>> image.close()
        >>> image.read(0, 1)
        Traceback (most recent call last):
            ...
        ValueError: the image is closed
        """
        self._handle.close()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise ValueError("the image is closed")

    def __enter__(self) -> Self:
        self._refuse_closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is None or handle.mode != "r+" or handle.closed:
            return
        warnings.warn(f"unclosed image {handle.name!r}: what was written is flushed now", ResourceWarning, stacklevel=2)
        handle.close()

    def __repr__(self) -> str:
        name = "in memory" if self._handle.name is None else repr(self._handle.name)
        mode = "" if self.mode == "r" else f" mode={self.mode!r}"
        state = " closed" if self.closed else ""
        return f"<qcowkit.Image {name}{mode}{state}>"


def handle_of(image: object) -> _qcowkit.Image:
    """What is below an open image that a caller gave as an argument."""
    if not isinstance(image, Handle):
        raise TypeError(f"an open image is wanted, as qcowkit.open() gives it, not {type(image).__name__}")
    return image._handle
