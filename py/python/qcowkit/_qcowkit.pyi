__all__ = ["ERROR_CODES", "__version__"]

__version__: str
ERROR_CODES: list[str]
