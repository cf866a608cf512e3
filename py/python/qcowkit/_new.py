"""What a new image is like, as keyword arguments and as QEMU's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, SupportsIndex, TypedDict

from qcowkit._check import word
from qcowkit.errors import InvalidArgumentError

__all__ = ["NewImage", "words"]


class NewImage(TypedDict, total=False):
    """The shape of a new image; see :func:`qcowkit.create` for what each is."""

    cluster_size: SupportsIndex | str
    version: Literal[2, 3]
    extended_l2: bool
    lazy_refcounts: bool
    refcount_bits: int
    compression: Literal["zlib", "zstd"]
    preallocation: Literal["off", "metadata", "falloc", "full"]
    data_file: str
    data_file_raw: bool


_NAMES = {"version": "compat", "compression": "compression_type"}
_VERSIONS = {2: "0.10", 3: "1.1"}


def words(
    new: NewImage, key: str | bytes | None = None, encryption: Mapping[str, str | int] | None = None
) -> list[tuple[str, str]]:
    """The options as QEMU spells them."""
    given: dict[str, Any] = dict(new)
    unknown = given.keys() - NewImage.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
    if "version" in given and given["version"] not in _VERSIONS:
        raise InvalidArgumentError(f"version is 2 or 3, not {given['version']!r}")
    options = []
    for name, value in given.items():
        spelled = _VERSIONS[value] if name == "version" else word(value, name)
        options.append((_NAMES.get(name, name), spelled))
    if encryption is not None and key is None:
        raise InvalidArgumentError("encryption needs a key")
    if key is not None:
        options.append(("encrypt.format", "luks"))
        options += [(f"encrypt.{name}", word(value, name)) for name, value in (encryption or {}).items()]
    return options
