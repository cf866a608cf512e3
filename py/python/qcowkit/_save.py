"""Writing an image out."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, SupportsIndex

from qcowkit._check import between, unsigned
from qcowkit._handle import Handle, handle_of
from qcowkit._new import NewImage, words
from qcowkit._progress import ProgressLike, progress_function
from qcowkit.errors import UnsupportedError

if TYPE_CHECKING:
    from typing import Unpack

    from qcowkit._open import BinaryFile

__all__ = ["Save"]


class Save(Handle):
    """Copies of the image."""

    def save_as(
        self,
        target: str | os.PathLike[str] | BinaryFile,
        *,
        overwrite: bool = False,
        progress: ProgressLike | None = None,
    ) -> None:
        """Writes the image file out as it is now, with the edits of scratch mode, holes left out.

        It is written beside the target and put in its place when it is complete, so that KeyboardInterrupt and failures
        leave what was there. Names of other files stay as they are in the image: relative ones are relative to the new
        place.

        Args:
            target: a path; in scratch mode it may be that of the image itself. Or a binary file object that can be
                written, which is given the whole file by way of a temporary one (`tempfile`): `io.BytesIO` for bytes.
            overwrite: replaces what is there.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.

        Raises:
            FileExistsError: there is something, and `overwrite` was not said.
            TypeError: the target is neither.
            qcowkit.errors.LockedError: another program uses what would be replaced, a virtual machine for example.
            qcowkit.errors.InvalidArgumentError: what would be replaced is no file, or one of this image and its chain.
            qcowkit.errors.UnsupportedError: guest data are in an external data file; :meth:`convert` copies them.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.write(0, b"edited")
        ...     image.save_as("edited.qcow2")
        6
        >>> with qcowkit.open("edited.qcow2") as image:
        ...     image.read(0, 6)
        b'edited'
        """
        with _path_of(target, overwrite) as path:
            self._handle.save_as(path, overwrite, progress_function(progress))

    def convert(
        self,
        target: str | os.PathLike[str] | BinaryFile,
        *,
        behind: Sequence[Save] = (),
        backing: str | os.PathLike[str] | None = None,
        backing_format: Literal["qcow2", "raw"] | None = None,
        format: Literal["qcow2", "raw"] = "qcow2",  # noqa: A002
        compress: bool = False,
        sparse_size: SupportsIndex = 4096,
        workers: int = 8,
        rate: SupportsIndex = 0,
        salvage: bool = False,
        key: str | bytes | None = None,
        encryption: Mapping[str, str | int] | None = None,
        overwrite: bool = False,
        progress: ProgressLike | None = None,
        **new: Unpack[NewImage],
    ) -> dict[str, int]:
        """Copies the disk, all layers together, into a new image. Internal snapshots and bitmaps stay behind.

        KeyboardInterrupt and failures take a target away that was not there before.

        Args:
            target: a path, or a binary file object as of :meth:`save_as`.
            behind: open images whose disks follow behind this one. All of them are in files then.
            backing: the name of a backing file that the new image is to have, relative to it, which holds what the
                layers below this image hold: those are not copied. It is not compared.
            backing_format: its format. Needed.
            format: "qcow2", or "raw" for the bytes of the disk as they are.
            compress: packs every cluster.
            sparse_size: so many zero bytes in a row are not written: a multiple of 512, at most 16 MiB; 0 writes all.
            workers: the most threads that read and pack, 1 to 16. Images that are no plain files have one, and know
                neither a `sparse_size` of 0, nor `rate`, nor `salvage`.
            rate: the most bytes of data that are written in a second; 0 is no limit.
            salvage: what cannot be read becomes zeros.
            key: encrypts the new image with LUKS.
            encryption: how, under QEMU's names: see :func:`qcowkit.create`.
            overwrite: replaces what is there.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.
            **new: what the new image is like: see :func:`qcowkit.create`.

        Returns:
            Bytes of the disk: `total_bytes`; of them `data_bytes` were written as data, `zero_bytes` as zeros, and the
            rest was left alone. Of the data, `compressed_bytes` were packed, and take `packed_bytes` of the file.

        Raises:
            FileExistsError: there is something, and `overwrite` was not said.
            qcowkit.errors.DeniedError: data lie in a backing file that was not allowed.
            qcowkit.errors.InvalidArgumentError: options that cannot be; the target is a file of the source.
            qcowkit.errors.UnsupportedError: several sources, a backing file, or what else one thread cannot do, where a
                source is no plain file.

        Otherwise as `Image.read`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.convert("packed.qcow2", compress=True, cluster_size="128K")["compressed_bytes"]
        131072
        """
        options = words(new, key, encryption)
        if backing is not None:
            options.append(("backing_file", os.fspath(backing)))
        if backing_format is not None:
            options.append(("backing_fmt", backing_format))
        if not hasattr(target, "__fspath__") and not isinstance(target, str) and _names_files(options):
            raise UnsupportedError("a backing file or data file beside a file object")
        with _path_of(target, overwrite) as path:
            report: dict[str, int] = self._handle.convert(
                path,
                format=format,
                options=options,
                key=key,
                compress=compress,
                sparse_size=unsigned(sparse_size, "sparse_size"),
                workers=between(workers, "workers", 1, 16),
                rate=unsigned(rate, "rate"),
                salvage=salvage,
                overwrite=overwrite,
                more=[handle_of(image) for image in behind],
                progress=progress_function(progress),
            )
        return report


def _names_files(options: list[tuple[str, str]]) -> bool:
    """Whether the new image names files, whose names are relative to its own place."""
    return any(name in ("backing_file", "data_file") for name, _ in options)


@contextmanager
def _path_of(target: str | os.PathLike[str] | BinaryFile, overwrite: bool) -> Iterator[str | os.PathLike[str]]:
    """The path that a target is, or that of a temporary file whose bytes a file object gets if nothing goes wrong."""
    if isinstance(target, (str, os.PathLike)):
        yield target
        return
    write, truncate = getattr(target, "write", None), getattr(target, "truncate", None)
    if write is None or not hasattr(target, "seek"):
        raise TypeError(
            f"the target is a path or a binary file object that can be written, not {type(target).__name__}"
        )
    if target.seek(0, os.SEEK_END) and not overwrite:
        raise FileExistsError(errno.EEXIST, "the file object holds something: overwrite=True replaces it")
    with tempfile.TemporaryDirectory(prefix="qcowkit-") as folder:
        path = os.path.join(folder, "image")  # noqa: PTH118
        yield path
        target.seek(0)
        if truncate is not None:
            truncate(0)
        with open(path, "rb") as made:  # noqa: PTH123
            while piece := made.read(_PIECE):
                write(piece)


#: Bytes that are handed to a file object at once.
_PIECE = 1 << 20
