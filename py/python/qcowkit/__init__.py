"""Open, shape and heal qcow2 disk images.

>>> import qcowkit
>>> with qcowkit.open("disk.qcow2") as image:
...     image.info()["virtual-size"]
1073741824
"""

from qcowkit import errors, lab, plots, reports, table
from qcowkit._bitmaps import Bitmap
from qcowkit._create import convert, create, probe
from qcowkit._disk import GuestDisk
from qcowkit._image import Image
from qcowkit._looks import apply_repair, audit, check, measure, plan_repair, undo_repair
from qcowkit._open import BackingRef, KeyRequest, open  # noqa: A004
from qcowkit._partitions import Partition, PartitionTable
from qcowkit._qcowkit import __version__
from qcowkit._snapshots import Snapshot
from qcowkit.errors import QcowError
from qcowkit.lab import LabConfig, Trace, compare, replay
from qcowkit.policy import DiscardPolicy
from qcowkit.table import Column, Table

__all__ = [
    "BackingRef",
    "Bitmap",
    "Column",
    "DiscardPolicy",
    "GuestDisk",
    "Image",
    "KeyRequest",
    "LabConfig",
    "Partition",
    "PartitionTable",
    "QcowError",
    "Snapshot",
    "Table",
    "Trace",
    "__version__",
    "apply_repair",
    "audit",
    "check",
    "compare",
    "convert",
    "create",
    "errors",
    "lab",
    "measure",
    "open",
    "plan_repair",
    "plots",
    "probe",
    "replay",
    "reports",
    "table",
    "undo_repair",
]
