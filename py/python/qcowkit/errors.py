"""What can go wrong, as a small tree below `OSError`.

Every exception says what (`strerror`), in which file (`filename`) and where: `structure` names the structure of the
format, `host_offset` is the byte position in the image file, `guest_offset` the one in the virtual disk, `index` the
entry within the structure, `depth` the distance from the top of the backing chain. What does not apply is `None`.
`hint` says what to do about it.

What the operating system refuses is raised as Python's own exception (`FileNotFoundError`, `PermissionError`, ...), so
`except OSError` catches everything and `except QcowError` what is about qcow2.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar

__all__ = [
    "CodecError",
    "CorruptImageError",
    "DeniedError",
    "EncryptedError",
    "InvalidArgumentError",
    "LimitError",
    "LockedError",
    "NoSpaceError",
    "NotQcow2Error",
    "OutOfRangeError",
    "PoisonedError",
    "QcowError",
    "ReadOnlyError",
    "StorageError",
    "UnsupportedError",
    "WrongKeyError",
]


class QcowError(OSError):
    """The root of the tree.

    >>> try:
    ...     qcowkit.open("disk.qcow2").read(1 << 40, 1)
    ... except qcowkit.errors.QcowError as error:
    ...     error.code, error.guest_offset, error.filename
    ('out_of_range', 1099511627776, 'disk.qcow2')
    """

    #: The kind's name, the same in Rust and JavaScript.
    code: ClassVar[str] = ""
    #: What to do about it, where there is something to be done; also a note of the exception.
    hint: ClassVar[str | None] = None
    _errno: ClassVar[int] = _errno.EIO

    structure: str | None
    host_offset: int | None
    guest_offset: int | None
    index: int | None
    depth: int | None

    def __init__(
        self,
        message: str,
        filename: str | None = None,
        *,
        structure: str | None = None,
        host_offset: int | None = None,
        guest_offset: int | None = None,
        index: int | None = None,
        depth: int | None = None,
    ) -> None:
        super().__init__(self._errno, message, filename)
        self.structure = structure
        self.host_offset = host_offset
        self.guest_offset = guest_offset
        self.index = index
        self.depth = depth

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError would hand `errno` to a constructor that does not take one.
        return _rebuild, (type(self), self.strerror, self.filename, dict(self.__dict__))


class StorageError(QcowError):
    """The storage below failed, and the operating system has no number for it.

    >>> issubclass(qcowkit.errors.StorageError, OSError), qcowkit.errors.StorageError.code
    (True, 'storage')
    """

    code = "storage"


class NotQcow2Error(QcowError):
    """The file is no qcow2 image.

    >>> try:
    ...     qcowkit.open(bytes(65536))
    ... except qcowkit.errors.NotQcow2Error as error:
    ...     error.code, error.hint
    ('not_qcow2', "qcowkit.probe() tells what it is; convert(source_format='raw') takes its bytes as a disk")
    """

    code = "not_qcow2"
    hint = "qcowkit.probe() tells what it is; convert(source_format='raw') takes its bytes as a disk"
    _errno = _errno.EINVAL


class CorruptImageError(QcowError):
    """The image contradicts its specification or itself.

    >>> import pathlib
    >>> broken = bytearray(pathlib.Path("disk.qcow2").read_bytes())
    >>> broken[40:48] = (1).to_bytes(8)
    >>> try:
    ...     qcowkit.open(broken)
    ... except qcowkit.errors.CorruptImageError as error:
    ...     error.code, error.structure
    ('corrupt', 'header')
    """

    code = "corrupt"
    hint = "qcowkit.check() tells all that is wrong, and qcowkit.plan_repair() what a repair would do"


class UnsupportedError(QcowError):
    """The image needs something that is not supported; the message names it.

    >>> import pathlib
    >>> strange = bytearray(pathlib.Path("disk.qcow2").read_bytes())
    >>> strange[72] = 0x80
    >>> try:
    ...     qcowkit.open(strange)
    ... except qcowkit.errors.UnsupportedError as error:
    ...     error.code, error.hint
    ('unsupported', None)
    """

    code = "unsupported"
    _errno = _errno.ENOTSUP


class EncryptedError(QcowError):
    """The guest data is encrypted and no key was given.

    >>> with qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}) as image:
    ...     count = image.write(0, b"hidden")
    >>> try:
    ...     qcowkit.open("secret.qcow2").read(0, 1)
    ... except qcowkit.errors.EncryptedError as error:
    ...     error.code, error.hint
    ('encrypted', 'open it with key=')
    """

    code = "encrypted"
    hint = "open it with key="
    _errno = _errno.EACCES


class WrongKeyError(QcowError):
    """None of the keys that were given opens the image.

    >>> qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}).close()
    >>> try:
    ...     qcowkit.open("secret.qcow2", key="xyz")
    ... except qcowkit.errors.WrongKeyError as error:
    ...     error.code, error.hint
    ('wrong_key', 'open it with another key=, or without one to look at all that is not encrypted')
    """

    code = "wrong_key"
    hint = "open it with another key=, or without one to look at all that is not encrypted"
    _errno = _errno.EACCES


class DeniedError(QcowError):
    """The image names a file that this call may not open.

    >>> qcowkit.create("top.qcow2", backing="disk.qcow2", backing_format="qcow2").close()
    >>> try:
    ...     qcowkit.open("top.qcow2").read(0, 1)
    ... except qcowkit.errors.DeniedError as error:
    ...     error.code, error.structure
    ('denied', 'backing_file')
    """

    code = "denied"
    hint = "open it with backing='same-dir', backing='follow' (images that are trusted), or a function that decides"
    _errno = _errno.EACCES


class InvalidArgumentError(QcowError, ValueError):
    """An argument is wrong.

    >>> try:
    ...     qcowkit.create("new.qcow2", "1M", cluster_size=3)
    ... except qcowkit.errors.InvalidArgumentError as error:
    ...     error.code, error.hint
    ('invalid_argument', None)
    >>> issubclass(qcowkit.errors.InvalidArgumentError, ValueError)
    True
    """

    code = "invalid_argument"
    _errno = _errno.EINVAL


class OutOfRangeError(QcowError, ValueError):
    """A guest range reaches beyond the end of the virtual disk.

    >>> try:
    ...     qcowkit.open("disk.qcow2").read(1 << 40, 1)
    ... except qcowkit.errors.OutOfRangeError as error:
    ...     error.code, error.hint
    ('out_of_range', 'Image.size is where the disk ends; Image.resize() moves the end')
    """

    code = "out_of_range"
    hint = "Image.size is where the disk ends; Image.resize() moves the end"
    _errno = _errno.EINVAL


class ReadOnlyError(QcowError):
    """A write was asked of an image that is open read-only.

    >>> try:
    ...     qcowkit.open("disk.qcow2").write(0, b"x")
    ... except qcowkit.errors.ReadOnlyError as error:
    ...     error.code, error.hint
    ('read_only', "open it with mode 'r+', or 'scratch' to change it in memory")
    """

    code = "read_only"
    hint = "open it with mode 'r+', or 'scratch' to change it in memory"
    _errno = _errno.EROFS


class LockedError(QcowError):
    """Another process holds the image.

    >>> with qcowkit.open("disk.qcow2", "r+"):
    ...     try:
    ...         qcowkit.open("disk.qcow2", "r+")
    ...     except qcowkit.errors.LockedError as error:
    ...         error.code, error.hint
    ('locked', 'wait until the other is done; lock=False looks at an image in use')
    """

    code = "locked"
    hint = "wait until the other is done; lock=False looks at an image in use"
    _errno = _errno.EAGAIN


class LimitError(QcowError):
    """A table or field exceeds a limit; the message names it.

    >>> qcowkit.errors.LimitError("a table is too large", structure="l1_table").structure
    'l1_table'
    """

    code = "limit"
    _errno = _errno.EFBIG


class NoSpaceError(QcowError):
    """The storage or the format has no room left.

    >>> with qcowkit.open("disk.qcow2", "scratch") as image:
    ...     disk = image.disk()
    ...     end = disk.seek(0, 2)
    ...     try:
    ...         disk.write(b"x")
    ...     except qcowkit.errors.NoSpaceError as error:
    ...         error.code
    'no_space'
    """

    code = "no_space"
    hint = "make room and try again: what was written before is there"
    _errno = _errno.ENOSPC


class CodecError(QcowError):
    """Compressed data cannot be unpacked or packed.

    >>> issubclass(qcowkit.errors.CodecError, qcowkit.errors.QcowError), qcowkit.errors.CodecError.code
    (True, 'codec')
    """

    code = "codec"
    hint = "the data are damaged: Image.convert(salvage=True) copies what can be read"


class PoisonedError(QcowError):
    """An earlier failure left the image unsure: only closing is possible now.

    >>> qcowkit.errors.PoisonedError.hint
    'close the image and open it again: what was flushed before the failure is there'
    """

    code = "poisoned"
    hint = "close the image and open it again: what was flushed before the failure is there"


_BY_CODE: dict[str, type[QcowError]] = {kind.code: kind for kind in QcowError.__subclasses__()}


def _raised(code: str, message: str, filename: str | None, errno: int | None, site: dict[str, Any]) -> OSError:
    """The exception for an error of the core; called by the extension module alone."""
    if errno is not None:
        refused = OSError(errno, message, filename)
        place = _place(site)
        if place:
            refused.add_note(f"it was about the {place}")
        return refused
    kind = _BY_CODE.get(code, QcowError)
    error = kind(message, filename, **site)
    if kind.hint is not None:
        error.add_note(kind.hint)
    return error


def _place(site: dict[str, Any]) -> str:
    """A site in words; empty where it is the file as a whole."""
    structure, depth = site.get("structure"), site.get("depth")
    words = ["disk" if structure is None else str(structure).replace("_", " ")]
    offsets = [name for name in ("host_offset", "guest_offset") if site.get(name) is not None]
    words += [f"{name.replace('_', ' ')} {site[name]:#x}" for name in offsets]
    if site.get("index") is not None:
        words.append(f"entry {site['index']}")
    if depth:
        words.append(f"{depth} below the image")
    return "" if words == ["disk"] else ", ".join(words)


def _rebuild(kind: type[QcowError], message: str, filename: str | None, state: dict[str, Any]) -> QcowError:
    error = kind(message, filename)
    error.__dict__.update(state)
    return error
