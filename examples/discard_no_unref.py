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
# # What would discard-no-unref do to my VM?
#
# On busy guests with `discard=unmap`, image files have been seen to grow beyond the size of their disk although much of
# them is free: what the guest gives back in pieces comes back in pieces, and new writes want long runs. QEMU's option
# `discard-no-unref=on` keeps discarded clusters in place. It has a cost of its own. Which is right for *your* workload?
#
# The discard lab replays a trace of what a guest did under each policy. No data are stored, so that any disk fits.

# %%
import matplotlib.pyplot as plt
import polars as pl

import qcowkit

GiB = 1 << 30

# %% [markdown]
# A trace of your own comes from `qemu-io` scripts, fio, `blkparse` or any table: `qcowkit.Trace.load("boot.csv")`. Here
# one is made up: a file system kept 85 % full, with files that come and go and are trimmed at once.

# %%
trace = qcowkit.Trace.churn(
    size=GiB,
    operations=12_000,
    trim="online",
    fill_percent=85,
    file_median=1 << 20,
    file_sigma_percent=150,
    file_max=64 << 20,
    request_max=8 << 20,
    rewrite_percent=10,
    mark_every=2_000,
)
trace

# %% [markdown]
# ## Story 1: the file that outgrew its disk

# %%
comparison = qcowkit.compare(trace, size=GiB)
comparison

# %%
figure, places = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
for metric, place in zip(["file_ppm", "discontinuities", "free_bytes", "retained_bytes"], places.flat, strict=True):
    comparison.plot(metric, place)
plt.show()

# %% [markdown]
# With `unmap` the file grows and falls apart, with free space inside that nobody can use in one piece. With `no-unref`
# it stays in order: each write goes back where it was. Host and backups get the same back under both.

# %%
ends = pl.DataFrame(comparison.table())
ends.select("run", "peak_file_length", "host_bytes", "free_bytes", "retained_bytes", "discontinuities", "backup_bytes")

# %%
unmap, no_unref = comparison["unmap"], comparison["no-unref"]
assert unmap.peak_file_length > no_unref.peak_file_length
assert unmap.end.discontinuities > 10 * no_unref.end.discontinuities

# %% [markdown]
# ## Story 2: the space that nobody gets back
#
# The opposite cost. A disk is filled, emptied, and filled in another place: clusters that are kept are kept for the
# guest clusters that had them. On a file system with holes that costs length; without holes (a block device, or
# `pass-discard-request=off`) it costs space.

# %%
moves = qcowkit.Trace.parse("write 0 20G\n# mark full\ndiscard 0 20G\n# mark emptied\nwrite 32G 10G\n")
quiet = qcowkit.DiscardPolicy(discard_no_unref=True, pass_discard_request=False)
policies: dict[str, str | qcowkit.DiscardPolicy] = {"unmap": "unmap", "no-unref": "no-unref", "no holes": quiet}
moved = qcowkit.compare(moves, policies, size=64 * GiB)
moved.plot("file_length")
plt.show()
moved

# %% [markdown]
# ## Advice
#
# More configurations, and what the numbers speak for.

# %%
advice = qcowkit.compare(trace, size=GiB, samples=5, advise=True).advice
assert advice is not None
print("best:", advice.best)
print(*advice.reasons, sep="\n")

# %% [markdown]
# The same question for an image that exists begins with its metadata: `qcowkit.compare(trace, image=image)`.
