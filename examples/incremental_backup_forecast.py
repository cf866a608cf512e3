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
# # Incremental backup forecast
#
# A dirty bitmap marks a discard like a write: a file that was deleted and trimmed looks like new data, and an
# incremental backup that knows the bitmap alone copies it. The image's mapping tells the two apart, without reading any
# data. How large is tonight's increment going to be?

# %%
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl

import qcowkit

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "mail.qcow2"
MiB = 1 << 20

# %% [markdown]
# A guest's week: every day it writes, rewrites, and deletes with trims. Each evening we forecast, and then the bitmap
# is cleared, as a backup does it.

# %%
chance = random.Random(7)
evenings: list[dict[str, object]] = []
with qcowkit.create(path, "2G") as image:
    for at in range(0, 256 * MiB, 4 * MiB):
        image.write(at, chance.randbytes(4 * MiB))
    image.add_bitmap("daily")
    for day in range(7):
        for _ in range(8):
            image.write(chance.randrange(256) * MiB, chance.randbytes(MiB))
        for _ in range(day):
            image.discard(chance.randrange(56) * 4 * MiB, 16 * MiB)
        image.write((300 + day * 4) * MiB, bytes(3 * MiB) + chance.randbytes(MiB))
        delta = image.delta(bitmap="daily", read=True)
        evenings.append({"day": day, "range": "all that changed", "MiB": delta.forecast.all_dirty.qcow2_bytes / MiB})
        known = delta.forecast.without_known_zeros.qcow2_bytes
        evenings.append({"day": day, "range": "without known zeros", "MiB": known / MiB})
        best = delta.forecast.without_zeros_and_equal
        assert best is not None
        evenings.append({"day": day, "range": "without zeros at all", "MiB": best.qcow2_bytes / MiB})
        if day < 6:
            image.clear_bitmap("daily")
        image.flush()

# %% [markdown]
# The last evening in four states. `dirty_zero` is what a backup by the bitmap alone copies for nothing.

# %%
delta

# %%
delta.plot()
plt.show()

# %%
week = pl.DataFrame(evenings)
for (name,), rows in week.group_by("range", maintain_order=True):
    plt.plot(rows["day"], rows["MiB"], marker="o", label=name)
plt.xlabel("day")
plt.ylabel("MiB of the increment")
plt.legend()
plt.show()

# %%
week.pivot("range", index="day", values="MiB")

# %% [markdown]
# The ranges are a table: what a backup program has to copy, and what it only notes as zeros.

# %%
ranges = pl.DataFrame(delta.ranges)
ranges.filter(pl.col("state").cast(pl.String).str.starts_with("dirty")).head()

# %%
assert delta.totals.dirty_zero > 0
assert delta.forecast.without_known_zeros.qcow2_bytes < delta.forecast.all_dirty.qcow2_bytes
folder.cleanup()
