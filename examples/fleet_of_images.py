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
# # A fleet of images
#
# Thousands of images on a storage server: which are the worst, and what could be had back in all? Each is analyzed in a
# process of its own by Dask, on one machine or on a cluster; the result is one Arrow table. Only metadata are read, so
# that an image of any size takes milliseconds.

# %%
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import dask.bag
import matplotlib.pyplot as plt
import polars as pl
from distributed import Client

import qcowkit

folder = tempfile.TemporaryDirectory()
fleet = Path(folder.name)
IMAGES = int(os.environ.get("FLEET_IMAGES", "200"))
KiB = 1 << 10

# %% [markdown]
# The fleet. In earnest: `paths = list(Path("/var/lib/libvirt/images").glob("*.qcow2"))`.

# %%
chance = random.Random(5)
for number in range(IMAGES):
    size = chance.choice([1 << 30, 8 << 30, 64 << 30])
    with qcowkit.create(fleet / f"vm-{number:04}.qcow2", size, cluster_size=chance.choice([65536, 131072])) as image:
        for _ in range(chance.randrange(4, 12)):
            image.write(chance.randrange(size // (64 * KiB)) * 64 * KiB, chance.randbytes(64 * KiB))
        if number % 3 == 0:
            image.create_snapshot("nightly")
            image.write(0, chance.randbytes(64 * KiB))
        if number % 4 == 0:
            image.discard(0, size, policy="no-unref" if number % 8 == 0 else "unmap")
(fleet / "vm-broken.qcow2").write_bytes(b"QFI\xfb" + bytes(600))
paths = sorted(str(path) for path in fleet.glob("*.qcow2"))

# %% [markdown]
# What is told of one image: a row. Images that cannot be opened have a row too: a fleet is never quite whole.


# %%
def row(path: str) -> dict[str, Any]:
    """One image in one row."""
    audit = qcowkit.audit(path)
    found: dict[str, Any] = {"name": Path(path).stem, "verdict": audit.verdict}
    try:
        with qcowkit.open(path) as image:
            analysis, check = image.analyze(extents=False), image.check()
    except OSError as why:
        return {**found, "error": str(why)}
    layout, ledger = analysis.layout, analysis.ledger
    return {
        **found,
        "virtual_size": analysis.virtual_size,
        "file_length": ledger.file_length,
        "held": ledger.total.held,
        "live": ledger["live_data"].bytes,
        "in_snapshots": ledger["only_in_snapshots"].bytes,
        "retained": ledger["zero_retained"].bytes,
        "free": ledger["free"].bytes,
        "reclaimable": analysis.reclaim.compact.host_bytes,
        "discontinuities": layout.guest_order.discontinuities,
        "corruptions": check.corruptions,
        "leaks": check.leaks,
    }


# %% [markdown]
# Two processes here; on a cluster it is `Client("tcp://scheduler:8786")`, and the rest stays as it is.

# %%
client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
rows = dask.bag.from_sequence(paths, npartitions=8).map(row).compute()
client.close()

# %% [markdown]
# One Arrow table, for whatever reads Arrow.

# %%
numbers = ["virtual_size", "file_length", "held", "live", "in_snapshots", "retained", "free", "reclaimable"]
numbers += ["discontinuities", "corruptions", "leaks"]
types: Any = {"name": "string", "verdict": "dictionary", **dict.fromkeys(numbers, "uint64"), "error": "string"}
table = qcowkit.Table.from_rows(rows, types)
table

# %%
frame = pl.DataFrame(table)
held, reclaimable = (sum(filter(None, table[name])) >> 20 for name in ("held", "reclaimable"))
print(f"{len(table)} images, {held} MiB held, {reclaimable} MiB to be had back")
frame.sort("reclaimable", descending=True, nulls_last=True).head()

# %%
frame.filter(pl.col("error").is_not_null()).select("name", "verdict", "error")

# %%
sums = frame.select("live", "in_snapshots", "retained", "free").sum().row(0, named=True)
plt.barh(list(sums), [number / (1 << 20) for number in sums.values()])
plt.xlabel("MiB, all images")
plt.show()

# %%
assert len(frame) == IMAGES + 1
assert frame["corruptions"].sum() == 0
folder.cleanup()
