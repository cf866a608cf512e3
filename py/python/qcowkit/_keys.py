"""The keys of an encrypted image."""

from __future__ import annotations

from typing import SupportsIndex

from qcowkit._check import unsigned
from qcowkit._handle import Handle

__all__ = ["Keys"]


class Keys(Handle):
    """The key slots of an image that is encrypted with LUKS: up to eight keys, each of which opens it."""

    @property
    def key_slots(self) -> list[bool]:
        """Which slots have a key; of an image that is open to be changed. `info()` tells more of any image's.

        Raises:
            qcowkit.errors.UnsupportedError: the image is not encrypted with LUKS.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> with qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}) as image:
        ...     image.key_slots[:2]
        [True, False]
        """
        return self._handle.key_slots()

    def add_key(self, key: str | bytes, *, slot: SupportsIndex | None = None, iter_time: SupportsIndex = 2000) -> int:
        """Lets another key open the image, and gives the number of its slot. Durable when it returns.

        Args:
            key: text or bytes.
            slot: which slot; the first that is free by default.
            iter_time: the milliseconds that trying the key takes on this machine.

        Raises:
            qcowkit.errors.EncryptedError: the image is locked: open it with one of its keys.
            qcowkit.errors.NoSpaceError: all slots are in use.
            qcowkit.errors.InvalidArgumentError: the slot is in use; a key that QEMU would not take.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}).close()
        >>> with qcowkit.open("secret.qcow2", "r+", key="abc") as image:
        ...     image.add_key("xyz", iter_time=10)
        1
        >>> qcowkit.open("secret.qcow2", key="xyz").close()
        """
        wanted = None if slot is None else unsigned(slot, "slot")
        return self._handle.add_key(key, wanted, unsigned(iter_time, "iter_time"))

    def erase_key(self, key: str | bytes | None = None, *, slot: SupportsIndex | None = None) -> list[int]:
        """Has a key open the image no more, and overwrites what it was made from; gives the numbers of the slots.

        The last key is never erased: all data would be lost with it.

        Args:
            key: is taken out of every slot that has it.
            slot: instead of a key, the number of a slot.

        Raises:
            qcowkit.errors.InvalidArgumentError: no slot has the key; it is the last one.
            qcowkit.errors.ReadOnlyError: the image was opened to read it.

        >>> qcowkit.create("secret.qcow2", "1M", key="abc", encryption={"iter-time": 10}).close()
        >>> with qcowkit.open("secret.qcow2", "r+", key="abc") as image:
        ...     slot = image.add_key("xyz", iter_time=10)
        ...     image.erase_key("abc")
        [0]
        """
        return self._handle.erase_key(key, None if slot is None else unsigned(slot, "slot"))
