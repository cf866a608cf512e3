"""Other sizes, other shapes, other backing files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from qcowkit._check import between, unsigned
from qcowkit._handle import Handle
from qcowkit._progress import ProgressLike, progress_function
from qcowkit._qcowkit import parse_size
from qcowkit.errors import InvalidArgumentError

if TYPE_CHECKING:
    from qcowkit._open import Source

__all__ = ["Shape"]


class Shape(Handle):
    """Changes of the image as a whole. Each is durable when the call returns."""

    def resize(
        self,
        size: SupportsIndex | str,
        *,
        preallocation: Literal["off", "metadata", "falloc", "full"] = "off",
        shrink: bool = False,
    ) -> None:
        """Sets the size of the disk. KeyboardInterrupt is heard when it is done: the change is whole.

        Args:
            size: bytes, or text: "10G" to that, "+1G" by that, "-512M" less by that. Units are powers of 1024.
            preallocation: what is reserved for what is added: nothing, the tables, also the space, also written zeros.
            shrink: the disk may become smaller; what lies behind the new end is lost then.

        Raises:
            qcowkit.errors.InvalidArgumentError: a size that cannot be, or a smaller one without `shrink`.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.
            qcowkit.errors.LockedError: a view of a snapshot is open.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.resize("+1G")
        ...     image.size
        2147483648
        """
        if not isinstance(size, str):
            wanted = unsigned(size, "size")
        elif size[:1] == "+":
            wanted = self._handle.size + parse_size(size[1:])
        elif size[:1] == "-":
            wanted = self._handle.size - parse_size(size[1:])
        else:
            wanted = parse_size(size)
        self._handle.resize(unsigned(wanted, "size"), preallocation, shrink)

    def amend(
        self,
        *,
        version: Literal[2, 3] | None = None,
        lazy_refcounts: bool | None = None,
        refcount_bits: int | None = None,
        data_file: str | None = None,
        data_file_raw: bool | None = None,
        progress: ProgressLike | None = None,
    ) -> None:
        """Changes the shape of the image; what is not given stays.

        KeyboardInterrupt is heard when it is done: each of its changes is whole.

        Args:
            version: of the format: 2 for programs before QEMU 1.1, 3 for all others.
            lazy_refcounts: programs may postpone refcounts, at the price of a repair after a crash. Version 3.
            refcount_bits: width of a refcount: 1, 2, 4, 8, 16, 32 or 64. Version 3, except 16.
            data_file: the name of the data file, for an image that has one.
            data_file_raw: `False`: the data file need not be a raw image of the disk any more.
            progress: a function of (done, total), or a bar of tqdm's.

        Raises:
            qcowkit.errors.InvalidArgumentError: what cannot be, or does not go together; nothing is changed.
            qcowkit.errors.UnsupportedError: the image has what version 2 cannot say.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.amend(refcount_bits=64)
        ...     image.info()["format-specific"]["data"]["refcount-bits"]
        64
        """
        self._handle.amend(
            version=None if version is None else between(version, "version", 2, 3),
            lazy_refcounts=lazy_refcounts,
            refcount_bits=None if refcount_bits is None else between(refcount_bits, "refcount_bits", 1, 64),
            data_file=data_file,
            data_file_raw=data_file_raw,
            progress=progress_function(progress),
        )

    def rebase(
        self,
        backing: str | os.PathLike[str] | None,
        format: Literal["qcow2", "raw"] | None = None,  # noqa: A002
        *,
        source: Source | None = None,
        unsafe: bool = False,
        compress: bool = False,
        progress: ProgressLike | None = None,
    ) -> dict[str, Any] | None:
        """Puts the image on another backing file, or on none, while the guest sees the same: what differs is copied.

        The image needs its present backing file: open it with `backing="follow"` or the like. KeyboardInterrupt leaves
        it on the present one.

        Args:
            backing: the name as the image is to have it, relative to the image; `None` for no backing file.
            format: the format of the new backing file; goes with one.
            source: what the new backing file is read from, if it is not the file of that name.
            unsafe: writes the name alone, and compares nothing: for a backing file that moved. `source` and `compress`
                do not go with it.
            compress: packs clusters that are copied.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.

        Returns:
            What was copied: `data_bytes` and `zero_bytes`. `None` with `unsafe`.

        Raises:
            qcowkit.errors.InvalidArgumentError: a name without format; a present backing file that was not opened.
            qcowkit.errors.DeniedError: the new backing file names files that may not be opened.

        >>> with qcowkit.create("top.qcow2", backing="disk.qcow2", backing_format="qcow2") as image:
        ...     image.rebase(None)
        ...     image.read(1 << 20, 5)
        {'data_bytes': 65536, 'zero_bytes': 0}
        b'hello'
        """
        if backing is None and (format is not None or source is not None):
            raise InvalidArgumentError("format and source go with a backing file, and there is to be none")
        if backing is not None and format is None:
            raise InvalidArgumentError("a backing file needs its format: 'qcow2' or 'raw'")
        if unsafe and (compress or source is not None):
            raise InvalidArgumentError("unsafe writes a name alone: nothing is read from source, or packed")
        report: dict[str, Any] | None = self._handle.rebase(
            None if backing is None else os.fspath(backing),
            format,
            source,
            compress=compress,
            contents=not unsafe,
            progress=progress_function(progress),
        )
        return report

    def commit(
        self,
        base: str | os.PathLike[str] | None = None,
        *,
        keep: bool = False,
        progress: ProgressLike | None = None,
    ) -> dict[str, Any]:
        """Puts what the image holds into its backing file, and empties the image.

        The backing file is opened for writing meanwhile, with its locks: `backing` must have allowed it.
        KeyboardInterrupt leaves everything in the image, and a part of it in the backing file too: the guest sees the
        same.

        Args:
            base: a layer further down that gets it, by its path or its name in the image above; layers in between go
                along. The image is not emptied then.
            keep: does not empty the image.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.

        Returns:
            What was written: `data_bytes` and `zero_bytes`.

        Raises:
            qcowkit.errors.InvalidArgumentError: there is no such layer, it was not opened, or the mode is not "r+".
            qcowkit.errors.LockedError: somebody uses the backing file.

        >>> copied = qcowkit.convert("disk.qcow2", "base.qcow2")
        >>> with qcowkit.create("top.qcow2", backing="base.qcow2", backing_format="qcow2") as image:
        ...     image.write(0, b"new")
        ...     image.commit()
        3
        {'data_bytes': 65536, 'zero_bytes': 0}
        """
        self._refuse_closed()
        depth = 1 if base is None else self._handle.depth_of(base)
        if depth == 0:
            raise InvalidArgumentError(f"the chain of the image has no {os.fspath(base or '')!r}", self._handle.name)
        report: dict[str, Any] = self._handle.commit(depth, base is None and not keep, progress_function(progress))
        return report
