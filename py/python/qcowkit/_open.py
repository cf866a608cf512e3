"""Opening images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsIndex, TypeAlias, Union, runtime_checkable

from qcowkit import _qcowkit
from qcowkit._check import word
from qcowkit._image import Image
from qcowkit.policy import DiscardPolicy, PolicyLike

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BackingLike", "BackingRef", "BinaryFile", "KeyLike", "KeyRequest", "Source", "open"]


@runtime_checkable
class BinaryFile(Protocol):
    """A file object that images are read from: what `open(path, "rb")`, `io.BytesIO` and fsspec give.

    It needs `seek`, and `read` or `readinto`; to be changed also `write`, and `truncate` where it can become shorter.
    Only qcowkit may use it while the image is open.
    """

    def seek(self, offset: int, whence: int = ..., /) -> object:
        """Goes to a position; from the end (2) it gives the length."""

    def read(self, size: int = ..., /) -> bytes | None:
        """Reads at the position."""


#: What an image is opened from.
Source: TypeAlias = Union[str, "os.PathLike[str]", "Buffer", BinaryFile]


@dataclasses.dataclass(frozen=True)
class BackingRef:
    """A file that an image names; what a function given as `backing` is asked about. The name is untrusted.

    >>> qcowkit.create("top.qcow2", backing="disk.qcow2", backing_format="qcow2").close()
    >>> def allow(file: qcowkit.BackingRef) -> str | None:
    ...     return file.name if file.role == "backing" and file.format == "qcow2" else None
    >>> with qcowkit.open("top.qcow2", backing=allow) as image:
    ...     image.read(1 << 20, 5)
    b'hello'
    """

    #: "backing" (the layer below) or "data-file" (where the image keeps guest data).
    role: Literal["backing", "data-file"]
    #: The name as it stands in the image.
    name: str
    #: The format that the image claims for it, "raw" or "qcow2" mostly; `None` where it says none.
    format: str | None
    #: How deep the image that names it lies in the chain; 0 is the image that was opened.
    depth: int
    #: The path of the image that names it, if that lies in a file.
    image: str | None


@dataclasses.dataclass(frozen=True)
class KeyRequest:
    """An encrypted layer; what a function given as `key` is asked about.

    >>> qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}).close()
    >>> def ask(layer: qcowkit.KeyRequest) -> str | None:
    ...     return ["wrong", "abc"][layer.attempt] if layer.attempt < 2 else None
    >>> with qcowkit.open("secret.qcow2", key=ask) as image:
    ...     image.read(0, 2)
    b'\\x00\\x00'
    """

    #: How deep in the backing chain it lies; 0 is the image that was opened.
    depth: int
    #: Its path, if it lies in a file.
    image: str | None
    #: "LUKS" or "AES".
    method: str
    #: How many keys did not fit before.
    attempt: int


#: A key: text, bytes, or a function that is asked.
KeyLike: TypeAlias = str | bytes | Callable[[KeyRequest], str | bytes | None]
#: Which files that the image names may be opened.
BackingLike: TypeAlias = (
    Literal["deny", "same-dir", "follow"] | Callable[[BackingRef], "Source | tuple[Source, str] | None"]
)


def open(  # noqa: A001
    source: Source,
    mode: Literal["r", "r+", "scratch"] = "r",
    *,
    backing: BackingLike = "deny",
    key: KeyLike | None = None,
    snapshot: str | None = None,
    policy: PolicyLike | None = None,
    cache_size: SupportsIndex | None = None,
    lock: bool = True,
    options: Mapping[str, str | bool | int] | None = None,
) -> Image:
    """Opens a qcow2 image.

    Args:
        source: a path, bytes (also `bytearray`, `memoryview`, ...), or a binary file object that seeks. With bytes and
            file objects, images come from archives, buckets and sockets through whatever opens those.
        mode: "r" only looks. "r+" changes the file. "scratch" takes all changes in memory: the source stays as it
            is, and :meth:`Image.save_as` writes the result out.
        backing: which files that the image names, its backing chain and data file, may be opened. "deny" opens none:
            the image opens all the same, and what needs them raises :class:`~qcowkit.errors.DeniedError`. "same-dir"
            opens those below the image's own directory, if their format is stated. "follow" opens all, for images
            that are trusted. A function gets a :class:`BackingRef` and gives a source, a pair (source, format), or
            `None` to refuse.
        key: of an encrypted image: text, bytes, or a function that gets a :class:`KeyRequest` and gives one, or `None`
            when it has no more. Without, the image opens for all that needs no guest data. A key that nothing needs is
            refused; a function is asked where there is need. Keys are never printed.
        snapshot: the ID or name of an internal snapshot: the disk as it was then, read-only.
        policy: what discards and writes of zeros do; a :class:`DiscardPolicy` or the name of a preset.
        cache_size: bytes of mapping tables that are kept in memory; 32 MiB by default.
        lock: takes the locks that QEMU takes, so that an image in use is refused. Without, an image in use can be
            looked at; what is seen may not fit together.
        options: further run-time options, under QEMU's names: {"overlap-check": "all"}.

    Raises:
        FileNotFoundError: there is no such file; other `OSError`s as the system says.
        qcowkit.errors.NotQcow2Error: it is no qcow2 image.
        qcowkit.errors.CorruptImageError: the header contradicts itself.
        qcowkit.errors.UnsupportedError: the image uses features that are not known; they are named.
        qcowkit.errors.LockedError: another process uses it, a running virtual machine for example.
        qcowkit.errors.DeniedError: it names a file that `backing` does not allow.
        qcowkit.errors.WrongKeyError: the key does not fit.
        qcowkit.errors.InvalidArgumentError: an argument is none of those above.

    Exceptions of a file object or of a function come out as they are.

    >>> with qcowkit.open("disk.qcow2") as image:
    ...     image.size
    1073741824
    """
    return Image(
        _qcowkit.Image(
            source,
            mode,
            backing=_opener(backing),
            key=_asked(key),
            lock=lock,
            snapshot=snapshot,
            options=_settings(policy, cache_size, options),
        )
    )


def _settings(
    policy: PolicyLike | None,
    cache_size: SupportsIndex | None,
    options: Mapping[str, str | bool | int] | None,
) -> list[tuple[str, str]]:
    """The run-time options as QEMU spells them."""
    settings = {} if policy is None else DiscardPolicy.of(policy).options()
    if cache_size is not None:
        settings["l2-cache-size"] = word(cache_size, "cache_size")
    settings.update({name: word(value, name) for name, value in (options or {}).items()})
    return list(settings.items())


def _opener(backing: BackingLike) -> Any:
    """The function in the form in which it is called from below."""
    if not callable(backing):
        return backing

    def ask(role: Any, name: str, claimed: str | None, depth: int, image: str | None) -> Any:
        return backing(BackingRef(role, name, claimed, depth, image))

    return ask


def _asked(key: KeyLike | None) -> Any:
    """As :func:`_opener`."""
    if not callable(key):
        return key

    def ask(depth: int, image: str | None, method: str, attempt: int) -> str | bytes | None:
        return key(KeyRequest(depth, image, method, attempt))

    return ask
