"""The guest's bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsIndex

from qcowkit._check import LIMIT, unsigned
from qcowkit._disk import GuestDisk
from qcowkit._handle import Handle
from qcowkit.policy import DiscardPolicy, PolicyLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["GuestBytes"]


class GuestBytes(Handle):
    """Reading and writing the virtual disk, by offsets in bytes from its begin. Many threads may do so at once."""

    @property
    def size(self) -> int:
        """Bytes of the virtual disk.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.size
        1073741824
        """
        return self._handle.size

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster, the unit of allocation: a power of two from 512 to 2 MiB.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.cluster_size
        65536
        """
        return self._handle.cluster_size

    @property
    def file_size(self) -> int:
        """Bytes of the image file, holes included. In scratch mode, what it would have with the edits.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.file_size < image.size
        True
        """
        return self._handle.file_size

    @property
    def edited_bytes(self) -> int:
        """Bytes of memory that the edits of scratch mode take; 0 in other modes.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     written = image.write(0, bytes(range(256)) * 400)
        ...     image.edited_bytes >= 100_000
        True
        """
        return self._handle.edited_bytes

    @property
    def chain_length(self) -> int:
        """How many layers were opened: the image itself, and the backing files that it was allowed.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.chain_length
        1
        """
        return self._handle.chain_length

    @property
    def policy(self) -> DiscardPolicy:
        """What discards and writes of zeros do, as the image was opened.

        >>> with qcowkit.open("disk.qcow2", policy="no-unref") as image:
        ...     image.policy
        DiscardPolicy(discard_no_unref=True)
        """
        return DiscardPolicy._of_words(self._handle.policy_words())

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        # A disk of no bytes is an image too.
        return True

    def read(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> bytes:
        """Bytes of the guest.

        Args:
            offset: where to begin, in bytes.
            length: how many bytes; all up to the end of the disk by default.

        Raises:
            qcowkit.errors.OutOfRangeError: the range reaches beyond the end of the disk; `disk()` gives a file that is
                read up to its end instead.
            qcowkit.errors.DeniedError: the bytes lie in a backing file or data file that was not allowed.
            qcowkit.errors.EncryptedError: the disk is encrypted, and no key was given.
            qcowkit.errors.CorruptImageError: an entry on the way has no meaning.
            qcowkit.errors.CodecError: compressed data are damaged.

        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.read(1 << 20, 5)
        b'hello'
        """
        # Short reads in order take little longer than these checks: plain numbers go without further calls.
        if type(offset) is type(length) is int and 0 <= offset < LIMIT and 0 <= length < LIMIT:
            return self._handle.read(offset, length)
        start = unsigned(offset, "offset")
        count = max(self.size - start, 0) if length is None else unsigned(length, "length")
        return self._handle.read(start, count)

    def readinto(self, offset: SupportsIndex, buffer: Buffer) -> int:
        """Fills a buffer with bytes of the guest, and gives how many that are: all that fit.

        Args:
            offset: where to begin, in bytes.
            buffer: anything writable that shows contiguous memory: `bytearray`, `memoryview`, `array`, a NumPy array.

        Raises:
            qcowkit.errors.OutOfRangeError: the disk has fewer bytes from there.
            BufferError: the buffer is read-only, or not contiguous.

        Otherwise as :meth:`read`.

        >>> buffer = bytearray(5)
        >>> with qcowkit.open("disk.qcow2") as image:
        ...     image.readinto(1 << 20, buffer)
        5
        >>> buffer
        bytearray(b'hello')
        """
        return self._handle.readinto(unsigned(offset, "offset"), buffer)

    def write(self, offset: SupportsIndex, data: Buffer) -> int:
        """Writes bytes of the guest, and gives how many that are: all.

        They are durable after :meth:`flush` or :meth:`close`. KeyboardInterrupt can leave a part of long data written.

        Args:
            offset: where to begin, in bytes.
            data: `bytes`, or anything else that shows its memory.

        Raises:
            qcowkit.errors.ReadOnlyError: the image was opened to read it.
            qcowkit.errors.OutOfRangeError: the range reaches beyond the end of the disk; nothing is written.
            qcowkit.errors.NoSpaceError: the host, or the format, has no more space.
            qcowkit.errors.DeniedError: old bytes beside the new ones lie in a backing file that was not allowed.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.write(4096, b"new")
        ...     image.read(4095, 5)
        3
        b'\\x00new\\x00'
        """
        return self._handle.write(unsigned(offset, "offset"), data)

    def write_zeroes(self, offset: SupportsIndex, length: SupportsIndex, *, unmap: bool = True) -> None:
        """Makes a range read as zeros, without writing them where the format can say so.

        Args:
            offset: where to begin, in bytes.
            length: how many bytes.
            unmap: clusters may be given back, as the discard policy says; otherwise their space stays reserved.

        Raises: as :meth:`write`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.write_zeroes(1 << 20, 4)
        ...     image.read(1 << 20, 5)
        b'\\x00\\x00\\x00\\x00o'
        """
        self._handle.write_zeroes(unsigned(offset, "offset"), unsigned(length, "length"), unmap)

    def discard(self, offset: SupportsIndex, length: SupportsIndex, *, policy: PolicyLike | None = None) -> None:
        """Tells the image that the guest needs a range no more. What becomes of it the discard policy says.

        Whole clusters are discarded; what the range has of others stays as it is. Discarded clusters read as zeros;
        nothing happens in images of version 2 with a backing file, which have no way to say zero.

        Args:
            offset: where to begin, in bytes.
            length: how many bytes.
            policy: what discards do, this once; the policy that the image was opened with by default. Of it, only what
                speaks of discards is heard: `discard`, `discard_no_unref`, `pass_discard_*` and `retained_op`.

        Raises: as :meth:`write`.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.discard(1 << 20, image.cluster_size, policy="no-unref")
        ...     image.read(1 << 20, 5)
        b'\\x00\\x00\\x00\\x00\\x00'
        """
        once = None if policy is None else list(DiscardPolicy.of(policy).options().items())
        self._handle.discard(unsigned(offset, "offset"), unsigned(length, "length"), once)

    def flush(self) -> None:
        """Makes everything durable that was written so far. Does nothing in an image that is only read.

        Raises:
            OSError: the storage failed. After a failed flush, the image refuses all further writes
                (:class:`~qcowkit.errors.PoisonedError`): what reached the disk is unknown.

        >>> with qcowkit.open("disk.qcow2", "scratch") as image:
        ...     image.flush()
        """
        self._handle.flush()

    def disk(self) -> GuestDisk:
        """The virtual disk as a file object, for everything that reads or writes files.

        It has a position of its own; any number can be open at once. It can be written where the image can.

        >>> import io
        >>> with qcowkit.open("disk.qcow2") as image:
        ...     file = io.BufferedReader(image.disk())
        ...     file.seek(1 << 20)
        ...     file.read(5)
        1048576
        b'hello'
        """
        self._refuse_closed()
        return GuestDisk(self._handle)
