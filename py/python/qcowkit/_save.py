"""Writing an image out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, SupportsIndex

from qcowkit._check import unsigned
from qcowkit._handle import Handle
from qcowkit._new import NewImage, words
from qcowkit._progress import ProgressLike, progress_function

if TYPE_CHECKING:
    from typing import Unpack

__all__ = ["Save"]


class Save(Handle):
    """Copies of the image."""

    def save_as(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: ProgressLike | None = None,
    ) -> None:
        """Writes the image file out as it is now, with the edits of scratch mode, holes left out.

        It is written beside the target and put in its place when it is complete, so that KeyboardInterrupt and failures
        leave what was there. Names of other files stay as they are in the image: relative ones are relative to the new
        place.

        Args:
            target: a path; in scratch mode it may be that of the image itself.
            overwrite: replaces what is there.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.

        Raises:
            FileExistsError: there is something, and `overwrite` was not said.
            qcowkit.errors.UnsupportedError: guest data are in an external data file; :meth:`convert` copies them.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.write(0, b"edited")
        ...     image.save_as("edited.qcow2")
        6
        >>> with qcowkit.open("edited.qcow2") as image:
        ...     image.read(0, 6)
        b'edited'
        """
        self._handle.save_as(target, overwrite, progress_function(progress))

    def convert(
        self,
        target: str | os.PathLike[str],
        *,
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
            target: a path.
            format: "qcow2", or "raw" for the bytes of the disk as they are.
            compress: packs every cluster.
            sparse_size: so many zero bytes in a row are not written: a multiple of 512, at most 16 MiB; 0 writes all.
            workers: the most threads that read and pack, 1 to 16. Images that are no plain files have one.
            rate: the most bytes of data that are written in a second; 0 is no limit.
            salvage: what cannot be read becomes zeros.
            key: encrypts the new image with LUKS.
            encryption: how, under QEMU's names: see :func:`qcowkit.create`.
            overwrite: replaces what is there.
            progress: a function of (done, total) in bytes, or a bar of tqdm's.
            **new: what the new image is like: see :func:`qcowkit.create`.

        Returns:
            Bytes of the disk: `total_bytes`, of them `data_bytes` and `zero_bytes`, and `compressed_bytes`, which take
            `packed_bytes` of the file.

        Raises:
            FileExistsError: there is something, and `overwrite` was not said.
            qcowkit.errors.DeniedError: data lie in a backing file that was not allowed.
            qcowkit.errors.InvalidArgumentError: options that cannot be; the target is a file of the source.

        Otherwise as `Image.read`.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.convert("packed.qcow2", compress=True, cluster_size="128K")["compressed_bytes"]
        131072
        """
        report: dict[str, int] = self._handle.convert(
            target,
            format=format,
            options=words(new, key, encryption),
            key=key,
            compress=compress,
            sparse_size=unsigned(sparse_size, "sparse_size"),
            workers=workers,
            rate=unsigned(rate, "rate"),
            salvage=salvage,
            overwrite=overwrite,
            progress=progress_function(progress),
        )
        return report
