"""Open, shape and heal qcow2 disk images."""

from qcowkit._qcowkit import __version__

__all__ = ["__version__"]
