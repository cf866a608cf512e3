"""Making images, and looking what a file is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from qcowkit import _qcowkit
from qcowkit._check import word
from qcowkit._image import Image
from qcowkit._new import NewImage, words
from qcowkit._open import BackingLike, KeyLike, KeyRequest, _opener, _settings, open  # noqa: A004
from qcowkit._progress import ProgressLike
from qcowkit.errors import InvalidArgumentError
from qcowkit.policy import PolicyLike

if TYPE_CHECKING:
    from typing import Unpack

    from qcowkit._open import BinaryFile, Source

__all__ = ["convert", "create", "probe"]


def create(
    target: str | os.PathLike[str] | BinaryFile,
    size: SupportsIndex | str | None = None,
    *,
    backing: str | os.PathLike[str] | None = None,
    backing_format: Literal["qcow2", "raw"] | None = None,
    allow: BackingLike = "follow",
    key: str | bytes | None = None,
    encryption: Mapping[str, str | int] | None = None,
    overwrite: bool = False,
    policy: PolicyLike | None = None,
    options: Mapping[str, str | bool | int] | None = None,
    **new: Unpack[NewImage],
) -> Image:
    """Makes a qcow2 image and opens it for writing. All is checked before anything is touched.

    KeyboardInterrupt is heard when the image is complete, which then is there.

    Args:
        target: a path, or a binary file object that can be written.
        size: bytes of the disk, or text such as "10G" (powers of 1024); rounded up to 512. The size of the backing file
            by default.
        backing: the name of a backing file as the image is to have it: relative to the image.
        backing_format: its format. Needed, so that nobody has to guess.
        allow: which files of the chain are opened for the image that is returned, as `backing` of :func:`open`.
        key: encrypts the image with LUKS. Text or bytes.
        encryption: how, under QEMU's names: "cipher-alg", "cipher-mode", "hash-alg", "ivgen-alg", "ivgen-hash-alg", and
            "iter-time", the milliseconds that trying a key takes on this machine (2000).
        overwrite: replaces what is there.
        policy: what discards and writes of zeros do while it is open, as of :func:`open`.
        options: further run-time options, as of :func:`open`.
        cluster_size: bytes of a cluster: a power of two from 512 to 2 MiB, also as text. 64 KiB by default.
        version: of the format, 2 or 3 (default).
        extended_l2: 32 subclusters in each cluster, of at least 512 bytes each. Version 3.
        lazy_refcounts: lets programs postpone refcounts. Version 3; qcowkit does not.
        refcount_bits: width of a refcount: 1, 2, 4, 8, 16 (default), 32 or 64.
        compression: "zlib" (default) or "zstd" for clusters that are packed.
        preallocation: "off" (default), "metadata" for the tables, "falloc" also for the space, "full" writes zeros.
        data_file: the name of an external data file, which is made too: guest data go there. Version 3.
        data_file_raw: the data file stays valid as a raw image of the disk.

    Raises:
        FileExistsError: there is something, and `overwrite` was not said.
        qcowkit.errors.InvalidArgumentError: options that cannot be or do not go together; nothing was touched.
        qcowkit.errors.LockedError: what is there is in use.
        OSError: as the system says.

    >>> with qcowkit.create("new.qcow2", "10G", cluster_size="128K", refcount_bits=1) as image:
    ...     image.size, image.cluster_size
    (10737418240, 131072)
    """
    spelled = words(new, key, encryption)
    if backing is not None:
        spelled.append(("backing_file", os.fspath(backing)))
    if backing_format is not None:
        spelled.append(("backing_fmt", backing_format))
    handle = _qcowkit.create(
        target,
        None if size is None else word(size, "size"),
        options=spelled,
        key=key,
        backing=_opener(allow),
        settings=_settings(policy, None, options),
        overwrite=overwrite,
    )
    return Image(handle)


def convert(
    source: Source | list[Source] | tuple[Source, ...],
    target: str | os.PathLike[str] | BinaryFile,
    *,
    source_format: Literal["qcow2", "raw"] = "qcow2",
    backing: BackingLike = "deny",
    source_key: KeyLike | None = None,
    snapshot: str | None = None,
    progress: ProgressLike | None = None,
    **how: Any,
) -> dict[str, int]:
    """Copies the disk of an image into a new image: :func:`open` and :meth:`Image.convert` in a row.

    Args:
        source: as of :func:`open`; or a list of images in files, whose disks are copied one behind the other.
        target: as of :meth:`Image.convert`.
        source_format: "raw" takes the bytes of a file as they are for a disk: then `source` is a path, or a list of
            paths. They are rounded up to 512.
        backing: which files that the source names may be opened, as of :func:`open`.
        source_key: the key of the source, if it is encrypted; of several, of those that are.
        snapshot: copies the disk as it was when this internal snapshot was taken.
        progress: a function of (done, total) in bytes, or a bar of tqdm's.
        **how: everything else that :meth:`Image.convert` takes, but `backing`, the name of a backing file that the new
            image is to have: for that, open the source first.

    Raises: as those.

    >>> qcowkit.convert("disk.qcow2", "disk.raw", format="raw")["total_bytes"]
    1073741824
    >>> qcowkit.convert("disk.raw", "again.qcow2", source_format="raw")["data_bytes"]
    65536
    """
    sources: list[Source] = list(source) if isinstance(source, (list, tuple)) else [source]
    if not sources:
        raise InvalidArgumentError("there is no source")
    with ExitStack() as stack:
        if source_format == "raw":
            if backing != "deny" or source_key is not None or snapshot is not None:
                raise InvalidArgumentError("backing, source_key and snapshot go with qcow2 sources: raw ones have none")
            images = [stack.enter_context(_over_raw(one)) for one in sources]
        elif source_format == "qcow2":
            key = _Key(source_key) if isinstance(source_key, (str, bytes)) else source_key
            images = [stack.enter_context(open(one, backing=backing, key=key, snapshot=snapshot)) for one in sources]
            if isinstance(key, _Key) and not key.asked:
                raise InvalidArgumentError("source_key was given, and nothing that was opened is encrypted")
        else:
            raise InvalidArgumentError(f"source_format is 'qcow2' or 'raw', not {source_format!r}")
        return images[0].convert(target, behind=images[1:], progress=progress, **how)


class _Key:
    """A key for those of several images that need one; knows whether any did."""

    def __init__(self, key: str | bytes) -> None:
        self._key = key
        self.asked = False

    def __call__(self, layer: KeyRequest) -> str | bytes | None:
        self.asked = True
        return None if layer.attempt else self._key


@contextmanager
def _over_raw(source: object) -> Iterator[Image]:
    """An empty image over a raw file, which reads as that."""
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"a raw source is a path, not {type(source).__name__}")
    path = os.path.abspath(source)  # noqa: PTH100
    with tempfile.TemporaryDirectory(prefix="qcowkit-") as folder:
        over = os.path.join(folder, "over")  # noqa: PTH118
        create(over, backing=path, backing_format="raw", allow="deny").close()
        # It names that file alone.
        with open(over, backing="follow") as image:
            yield image


def probe(source: Source) -> dict[str, Any]:
    """What a file is, from its first bytes: for qcow2 what :meth:`Image.info` says, for others the format alone.

    Takes no lock, and opens no other file.

    Args:
        source: as of :func:`open`.

    Returns:
        `format`: "qcow2", "raw", or the name of another format that begins like this; with `virtual-size` where
        that is known without understanding the format.

    Raises:
        qcowkit.errors.CorruptImageError: the header of a qcow2 image contradicts itself.
        OSError: as the system says.

    >>> qcowkit.probe("disk.qcow2")["format"]
    'qcow2'
    >>> qcowkit.probe(bytes(1024))
    {'format': 'raw', 'virtual-size': 1024}
    """
    known, length = _qcowkit.format_of(source)
    if known == "qcow2":
        with open(source, lock=False) as image:
            return image.info().to_dict()
    return {"format": known, "virtual-size": length} if known == "raw" else {"format": known}
