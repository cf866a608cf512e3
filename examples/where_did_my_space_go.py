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
# # Where did my space go?
#
# A disk of 1 GiB that holds 200 MiB of files, in an image file that is larger than that: why, and what can be had back?
# This notebook makes such an image, looks at it, plans what to do, tries it without risk, and does it.

# %%
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl

import qcowkit

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "server.qcow2"
MiB = 1 << 20

# %% [markdown]
# An image with a past: files come and go, a snapshot is taken and forgotten, and a trim is kept in place
# (`discard-no-unref`), as some set-ups have it.

# %%
chance = random.Random(1)
with qcowkit.create(path, "1G") as image:
    for at in range(0, 300 * MiB, MiB):
        image.write(at, chance.randbytes(MiB))
    image.create_snapshot("before the upgrade")
    for _ in range(60):
        image.write(chance.randrange(300) * MiB, chance.randbytes(MiB))
    image.discard(200 * MiB, 60 * MiB, policy="no-unref")
    for at in range(400 * MiB, 500 * MiB, 2 * MiB):
        image.write(at, chance.randbytes(MiB))
    for at in range(400 * MiB, 500 * MiB, 4 * MiB):
        image.discard(at, MiB)

image = qcowkit.open(path)
image

# %% [markdown]
# ## The space ledger
#
# Every byte of the file is in exactly one class; holes of the file are told apart from what the host really holds.

# %%
analysis = image.analyze()
analysis.ledger

# %%
analysis.plot()
plt.show()

# %% [markdown]
# What would each way of giving space back return? The numbers in place add up; `compact` is a rewrite.

# %%
ways = analysis.to_dict()["reclaim"]
pl.DataFrame([{"way": way, **gain} for way, gain in ways.items() if gain and gain["host_bytes"]]).sort("host_bytes")

# %% [markdown]
# ## Where it lies
#
# Tables go to polars without a copy. `clusters` tells the file's side: what lies where, who owns it.

# %%
clusters = pl.DataFrame(image.clusters())
clusters.group_by("kind", "owner").agg(pl.len().alias("runs"), pl.sum("length") // MiB).sort("length", descending=True)

# %%
qcowkit.plots.disk_map(image.runs())
plt.show()

# %% [markdown]
# ## Try first
#
# In scratch mode all edits stay in memory: the file is not touched. Discard what the guest does not use (here we know:
# everything beyond 300 MiB), and forget the snapshot.

# %%
plan = image.plan_discard([(300 * MiB, image.size - 300 * MiB)])
plan

# %%
with qcowkit.open(path, "scratch") as trial:
    trial.apply(plan)
    trial.delete_snapshot("before the upgrade")
    freed = analysis.ledger["live_data"].bytes - trial.space()["live_data"].bytes
    print(f"{freed // MiB} MiB less live data, check: {trial.check().ok}, {trial.edited_bytes // 1024} KiB of edits")

# %% [markdown]
# ## Do it

# %%
image.close()
with qcowkit.open(path, "r+") as image:
    done = image.apply(plan)
    image.delete_snapshot("before the upgrade")
    assert image.check().ok
    after = image.space()

assert done.host_bytes_before is not None
before, now = analysis.ledger.total.held, after.total.held
print(f"the host held {before // MiB} MiB for the file, now {now // MiB} MiB")
assert now < before
after

# %%
folder.cleanup()
