"""Progress of long calls: a function of (done, total), or a bar of tqdm's kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

__all__ = ["Bar", "ProgressLike", "progress_function"]


@runtime_checkable
class Bar(Protocol):
    """What tqdm's bars have."""

    n: Any
    total: Any

    def update(self, n: Any = ..., /) -> Any:
        """Moves the bar on by so much."""


#: A function that is told how much is done, of how much; or a bar. What it raises ends the call.
ProgressLike: TypeAlias = Callable[[int, int], object] | Bar


def progress_function(progress: ProgressLike | None) -> Callable[[int, int], object] | None:
    """The function that moves a bar, or the function itself."""
    if progress is None:
        return None
    # Some bars can be called too, for another purpose.
    if not isinstance(progress, Bar):
        if not callable(progress):
            raise TypeError(f"progress is a function of (done, total) or a bar, not {type(progress).__name__}")
        return progress
    bar = progress

    def move(done: int, total: int) -> None:
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)

    return move
