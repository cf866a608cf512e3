"""The image, as people use it from Python."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any

from qcowkit import _qcowkit

__all__ = ["Image", "open"]


class Image:
    """An open qcow2 image; made by :func:`qcowkit.open`.

    Closing is explicit: by `close()`, or by `with`. Methods of a closed image raise `ValueError`, as those of Python's
    files do. An image may be used from several threads; their calls wait for each other, and other threads of the
    program go on meanwhile.
    """

    def __init__(self, handle: _qcowkit.Image) -> None:
        self._handle = handle

    @property
    def path(self) -> str:
        """The name that the image was opened by."""
        return os.fspath(self._handle.path)

    @property
    def closed(self) -> bool:
        """Whether the image is closed."""
        return self._handle.closed

    def info(self) -> dict[str, Any]:
        """What the image says of itself: the object that `qcowkit info --output=json` prints.

        The keys are those of `qemu-img info --output=json`; sizes are in bytes.

        Raises:
            qcowkit.errors.CorruptImageError: a table that has to be read makes no sense.
            ValueError: the image is closed.
        """
        info: dict[str, Any] = self._handle.info()
        return info

    def close(self) -> None:
        """Make everything durable and give the file back. Closing again does nothing."""
        self._handle.close()

    def __enter__(self) -> Image:
        if self.closed:
            raise ValueError("the image is closed")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<qcowkit.Image {self.path!r}{state}>"


def open(path: str | os.PathLike[str]) -> Image:  # noqa: A001
    """Open the qcow2 image at `path`, to look at it. Nothing is written, and no file that the image names is opened.

    Raises:
        FileNotFoundError: there is no such file; other `OSError`s as the system says.
        qcowkit.errors.NotQcow2Error: the file is no qcow2 image.
        qcowkit.errors.CorruptImageError: the header contradicts itself.
        qcowkit.errors.UnsupportedError: the image uses features that are not known; they are named.
        qcowkit.errors.LockedError: another process writes to it, a running virtual machine for example.
    """
    return Image(_qcowkit.Image(path))
