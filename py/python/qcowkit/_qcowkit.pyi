import os
import pathlib
from typing import Any, final

__all__ = ["ERROR_CODES", "Image", "__version__"]

__version__: str
ERROR_CODES: list[str]

@final
class Image:
    def __new__(cls, path: str | os.PathLike[str]) -> Image: ...
    @property
    def path(self) -> pathlib.Path: ...
    @property
    def closed(self) -> bool: ...
    def info(self) -> Any: ...
    def close(self) -> None: ...
