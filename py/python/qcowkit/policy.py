"""What discards and writes of zeros do to an image: QEMU's run-time options, under QEMU's names.

>>> from qcowkit import DiscardPolicy
>>> DiscardPolicy.preset("no-unref")
DiscardPolicy(discard_no_unref=True)
>>> DiscardPolicy(detect_zeroes="unmap").options()["detect-zeroes"]
'unmap'
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from qcowkit.errors import InvalidArgumentError

__all__ = ["PRESETS", "DiscardPolicy", "PolicyLike"]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class DiscardPolicy:
    """What discards do. The defaults are QEMU's with `discard=unmap`.

    Raises:
        qcowkit.errors.InvalidArgumentError: an option has no such value.

    >>> DiscardPolicy(discard_no_unref=True, pass_discard_request=False).options()["discard-no-unref"]
    'on'
    """

    #: "unmap": guest discards are carried out. "ignore": they succeed and do nothing.
    discard: Literal["unmap", "ignore"] = "unmap"
    #: Discarded clusters keep their place in the image, so that later writes go back there and the file does not
    #: fragment. Clusters that a snapshot shares are given up all the same. Needs version 3; version 2 gives them up.
    discard_no_unref: bool = False
    #: Discards of the guest reach the host file (holes).
    pass_discard_request: bool = True
    #: Clusters that are freed with a snapshot become holes.
    pass_discard_snapshot: bool = True
    #: Clusters of tables that moved become holes.
    pass_discard_other: bool = False
    #: Writes of nothing but zeros: "off" writes them, "on" makes them zeros that keep their clusters, "unmap" may
    #: give the clusters back.
    detect_zeroes: Literal["off", "on", "unmap"] = "off"
    #: Where new clusters are taken from: "qemu" (next fit), "fill-holes" (the lowest free ones), "near" (behind the
    #: cluster of the preceding guest cluster). The latter two are qcowkit's own.
    allocation: Literal["qemu", "fill-holes", "near"] = "qemu"
    #: What is done on the host with a cluster that keeps its place: "punch" makes a hole, "zero-range" writes zeros
    #: without giving the space back, "none" leaves the old bytes. qcowkit's own.
    retained_op: Literal["punch", "zero-range", "none"] = "punch"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, known = getattr(self, field.name), _VALUES.get(field.name, (True, False))
            # True is 1, and the like.
            if type(value) is not type(known[0]) or value not in known:
                words = ", ".join(map(repr, known))
                raise InvalidArgumentError(f"{field.name} is one of {words}, not {value!r}")

    @classmethod
    def preset(cls, name: str) -> DiscardPolicy:
        """The policy of this name: "ignore", "unmap" or "no-unref".

        Raises:
            qcowkit.errors.InvalidArgumentError: there is none of this name.

        >>> DiscardPolicy.preset("ignore").discard
        'ignore'
        """
        try:
            return PRESETS[name]
        except KeyError:
            known = ", ".join(map(repr, PRESETS))
            raise InvalidArgumentError(f"there is no discard policy {name!r}; there are {known}") from None

    @classmethod
    def of(cls, policy: PolicyLike | None) -> DiscardPolicy:
        """A policy as it is, the preset of a name, or the default for `None`.

        >>> DiscardPolicy.of("unmap") == DiscardPolicy.of(None) == DiscardPolicy()
        True
        """
        if policy is None:
            return cls()
        if isinstance(policy, DiscardPolicy):
            return policy
        return cls.preset(policy)

    @classmethod
    def _of_words(cls, words: Iterable[tuple[str, str]]) -> DiscardPolicy:
        """The policy of options that QEMU's names spell."""
        given = {name.replace("-", "_"): word for name, word in words}
        values: dict[str, Any] = {
            field.name: given[field.name] if field.name in _VALUES else given[field.name] == "on"
            for field in dataclasses.fields(cls)
        }
        return cls(**values)

    def options(self) -> dict[str, str]:
        """The options as QEMU spells them: `discard-no-unref` is "on" or "off".

        >>> DiscardPolicy().options()["discard"]
        'unmap'
        """
        spelled = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            text = ("on" if value else "off") if isinstance(value, bool) else str(value)
            spelled[field.name.replace("_", "-")] = text
        return spelled

    def to_dict(self) -> dict[str, str | bool]:
        """The fields by their names.

        >>> DiscardPolicy().to_dict()["pass_discard_request"]
        True
        """
        return dataclasses.asdict(self)

    def __repr__(self) -> str:
        given = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        )
        return f"DiscardPolicy({', '.join(given)})"


#: The values of the options that are words.
_VALUES: dict[str, tuple[Any, ...]] = {
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(DiscardPolicy).items()
    if typing.get_origin(hint) is Literal
}

#: The policies that people choose from, by name.
PRESETS: dict[str, DiscardPolicy] = {
    "ignore": DiscardPolicy(discard="ignore"),
    "unmap": DiscardPolicy(),
    "no-unref": DiscardPolicy(discard_no_unref=True),
}

#: A policy, or the name of one of :data:`PRESETS`.
PolicyLike: TypeAlias = DiscardPolicy | str
