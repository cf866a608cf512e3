"""Open, shape and heal qcow2 disk images.

>>> import qcowkit
>>> with qcowkit.open("disk.qcow2") as image:  # doctest: +SKIP
...     image.info()["virtual-size"]
1073741824
"""

from qcowkit import errors
from qcowkit._image import Image, open  # noqa: A004
from qcowkit._qcowkit import __version__
from qcowkit.errors import QcowError

__all__ = ["Image", "QcowError", "__version__", "errors", "open"]
