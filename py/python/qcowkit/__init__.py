"""Open, shape and heal qcow2 disk images.

>>> import qcowkit
>>> with qcowkit.open("disk.qcow2") as image:
...     image.info()["virtual-size"]
1073741824
"""

from qcowkit import errors
from qcowkit._bitmaps import Bitmap
from qcowkit._create import convert, create, probe
from qcowkit._disk import GuestDisk
from qcowkit._image import Image
from qcowkit._open import BackingRef, KeyRequest, open  # noqa: A004
from qcowkit._partitions import Partition, PartitionTable
from qcowkit._qcowkit import __version__
from qcowkit._snapshots import Snapshot
from qcowkit.errors import QcowError
from qcowkit.policy import DiscardPolicy

__all__ = [
    "BackingRef",
    "Bitmap",
    "DiscardPolicy",
    "GuestDisk",
    "Image",
    "KeyRequest",
    "Partition",
    "PartitionTable",
    "QcowError",
    "Snapshot",
    "__version__",
    "convert",
    "create",
    "errors",
    "open",
    "probe",
]
