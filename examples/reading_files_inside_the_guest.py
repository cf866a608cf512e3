# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading files inside the guest, without root
#
# No mount, no `qemu-nbd`, no privileges: the guest's disk is a file object, and libraries that read file systems take
# it. Here two of them: dissect and The Sleuth Kit (`pytsk3`).

# %%
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytsk3
from dissect.extfs import ExtFS

import qcowkit

folder = tempfile.TemporaryDirectory()
here = Path(folder.name)
MiB = 1 << 20

# %% [markdown]
# A guest: one partition with ext4 on it, made by `mkfs.ext4` from a directory (that needs no root either), and written
# into an image.

# %%
files = here / "files"
(files / "etc").mkdir(parents=True)
(files / "etc" / "hostname").write_text("guest.example\n")
(files / "var" / "log").mkdir(parents=True)
(files / "var" / "log" / "boot.log").write_text("".join(f"line {number}\n" for number in range(20_000)))

mkfs = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")
assert mkfs is not None, "mkfs.ext4 (e2fsprogs) makes the guest of this example"
raw = here / "ext4.raw"
subprocess.run([mkfs, "-q", "-d", str(files), str(raw), "32M"], check=True)

# %%
path = here / "guest.qcow2"
with qcowkit.create(path, 64 * MiB) as image:
    first = bytes([0x80, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (65536).to_bytes(4, "little")
    image.write(446, first)
    image.write(510, b"\x55\xaa")
    image.write(MiB, raw.read_bytes())

# %% [markdown]
# ## Partitions

# %%
image = qcowkit.open(path)
partitions = image.partitions()
partitions

# %% [markdown]
# ## dissect
#
# Every layer is a file object: the image's disk, a partition's, a file's.

# %%
root = ExtFS(io.BufferedReader(partitions[0].disk()))
print(*(name for name in root.get("/").listdir()), sep="  ")
hostname = root.get("/etc/hostname").open().read()
hostname

# %%
log = root.get("/var/log/boot.log")
text = io.TextIOWrapper(io.BufferedReader(log.open()), "ascii")
print(log.size, "bytes, last line:", list(text)[-1])

# %% [markdown]
# ## The Sleuth Kit
#
# It wants an `Img_Info`: six lines.


# %%
class Disk(pytsk3.Img_Info):  # type: ignore[misc]
    def __init__(self, image: qcowkit.Image) -> None:
        self.image = image
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, size: int) -> bytes:
        return self.image.read(offset, min(size, self.image.size - offset))

    def get_size(self) -> int:
        return self.image.size


filesystem = pytsk3.FS_Info(Disk(image), offset=MiB)
entry = filesystem.open("/etc/hostname")
assert entry.read_random(0, entry.info.meta.size) == hostname == b"guest.example\n"

# %% [markdown]
# Which parts of the file system are where in the image file? The map says, for a file's blocks as for all guest bytes.

# %%
image.map(MiB, 33 * MiB)

# %%
image.close()
folder.cleanup()
