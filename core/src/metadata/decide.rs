//! What becomes of one cluster when its contents are discarded or set to zero: a decision, without I/O.
//!
//! [`discard`], [`write_zeroes`] and [`write_zeroes_subclusters`] are total functions from an entry, a [`Context`] and
//! a policy to a [`Step`]: the new entry, which references to give back, and what to do with the bytes on the host.
//! Every path that drops a mapping takes its decision here; [`release`] is the part for those that put another mapping
//! in its place (copy on write) or drop a whole table (snapshots).
//!
//! The decisions are QEMU's, named and tested row by row, except where QEMU loses data or space:
//!
//! 1. A cluster that a snapshot shares is never kept for its contents to be thrown away: its reference is dropped.
//! 2. A kept cluster that reads as zeros already has the discard passed down all the same.
//! 3. A raw data file is given the zeros that the guest reads, whatever the policy says of passing discards. (Where an
//!    entry has no host cluster, the file holds zeros by the same rule.)
//! 4. Offset 0 of a data file is a place like any other (`format` decodes it so).
//! 5. Version 2 cannot say "zero": zeros become a discard, or are refused when the backing file would shine through.
//! 6. Holes for clusters that are given back wait for the commit ([`HostOp::AfterCommit`]).
//!
//! ```
//! use qcowkit_core::format::{Geometry, HostOffset, HostRef, L2Entry};
//! use qcowkit_core::metadata::decide::{Context, DiscardPolicy, HostOp, Release, Unref, discard};
//!
//! let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).expect("64 KiB clusters");
//! let policy = DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() };
//! let ctx = Context::request(geometry, policy);
//!
//! // Ours alone: the place stays ours and becomes a hole.
//! let own = HostRef { offset: HostOffset::new(0x50000), copied: true };
//! let step = discard(L2Entry::normal(own, &geometry), &ctx);
//! assert_eq!(step.entry, L2Entry::zero_allocated(own, &geometry));
//! assert!(matches!(step.host_op, HostOp::Now(..)));
//!
//! // Shared with a snapshot: its bytes are not ours to touch.
//! let shared = HostRef { copied: false, ..own };
//! let step = discard(L2Entry::normal(shared, &geometry), &ctx);
//! assert_eq!(step.entry, L2Entry::zero_plain(&geometry));
//! assert!(matches!(step.release, Release::Refs(_)));
//! ```
//!
//! Not decided here, but by the caller: whether the image was opened with `discard=ignore`, how a request is cut into
//! clusters, and the bytes of those parts of a request that are smaller than a (sub)cluster.

use core::ops::Range;

use crate::format::{Geometry, HostOffset, HostRef, L2Entry, Subclusters};

/// Who asks for the discard; [`Pass`] tells for whom it reaches the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiscardType {
    /// Never passed down: the old cluster after a copy on write, the undoing of an allocation.
    Never,
    /// Always passed down: shrinking, repair.
    Always,
    /// The guest: discards, and zero writes that may unmap.
    Request,
    /// Snapshots that are deleted or applied.
    Snapshot,
    /// Metadata that moved.
    Other,
}

/// What happens to the reference of a cluster that the guest discards: QEMU's option `discard-no-unref`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Unref {
    /// It is dropped: `discard-no-unref=off`.
    #[default]
    Always,
    /// It is kept where the cluster is not shared, so that the next write goes to the same place; shared clusters
    /// are dropped: what `discard-no-unref=on` means here.
    RetainUnshared,
    /// It is kept as QEMU 10.0 keeps it, also where the cluster is shared, for comparisons entry by entry. What is
    /// shared is still never punched.
    RetainQemu,
}

/// What is done on the host with a cluster that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum RetainedOp {
    /// A hole, as QEMU makes it: the space is free for others, the place in the image stays.
    #[default]
    Punch,
    /// Zeros without giving the space back: the host file does not fragment.
    ZeroRange,
    /// Nothing: the old bytes stay, unreachable for the guest.
    None,
}

/// Whose discards reach the host: QEMU's options `pass-discard-*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Pass {
    /// `pass-discard-request`; on, since an image is opened with `discard=unmap` by default here.
    pub request: bool,
    /// `pass-discard-snapshot`; on.
    pub snapshot: bool,
    /// `pass-discard-other`; off.
    pub other: bool,
}

impl Default for Pass {
    fn default() -> Self {
        Self { request: true, snapshot: true, other: false }
    }
}

/// The policy of discards of an open image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct DiscardPolicy {
    /// Whether guest discards drop references. Version 2 has no way to keep them: there it is [`Unref::Always`].
    pub unref: Unref,
    /// Whose discards reach the host.
    pub pass: Pass,
    /// How, for clusters that are kept.
    pub retained_op: RetainedOp,
}

impl DiscardPolicy {
    /// Whether discards of this type reach the host.
    #[must_use]
    pub const fn passes(&self, kind: DiscardType) -> bool {
        match kind {
            DiscardType::Never => false,
            DiscardType::Always => true,
            DiscardType::Request => self.pass.request,
            DiscardType::Snapshot => self.pass.snapshot,
            DiscardType::Other => self.pass.other,
        }
    }
}

/// What a decision rests on besides the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Version, width of entries, whether there is a data file.
    pub geometry: Geometry,
    /// Unallocated clusters of this place read from a backing file (VM state never does).
    pub has_backing: bool,
    /// The data file must read as the guest disk does by itself (autoclear bit `data_file_raw`).
    pub data_file_raw: bool,
    /// Drop the mapping altogether, so that the backing file shows: shrinking, emptying after a commit.
    pub full: bool,
    /// Who asks.
    pub kind: DiscardType,
    /// The policy of the image.
    pub policy: DiscardPolicy,
}

impl Context {
    /// A guest's request.
    #[must_use]
    pub const fn request(geometry: Geometry, policy: DiscardPolicy) -> Self {
        Self { geometry, has_backing: false, data_file_raw: false, full: false, kind: DiscardType::Request, policy }
    }

    fn passes(&self) -> bool {
        self.policy.passes(self.kind)
    }

    fn raw(&self) -> bool {
        self.geometry.data_file() && self.data_file_raw
    }

    /// Whether somebody else may use the cluster. The data file has no refcounts and is never shared.
    fn shared(&self, host: HostRef) -> bool {
        !host.copied && !self.geometry.data_file()
    }

    /// Whether the cluster is kept although its contents go; asked where the discard is not `full`.
    fn retains(&self, host: HostRef) -> bool {
        let able = self.geometry.version() >= 3 && self.kind == DiscardType::Request;
        able && match self.policy.unref {
            Unref::Always => false,
            Unref::RetainUnshared => !self.shared(host),
            Unref::RetainQemu => true,
        }
    }
}

/// Bytes of the image file, or of the data file where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostRange {
    /// First byte.
    pub offset: HostOffset,
    /// Bytes.
    pub length: u64,
}

/// References to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// None.
    None,
    /// One reference of every host cluster that the range touches: one cluster, or those that hold a compressed one.
    Refs(HostRange),
}

/// What is done with the bytes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostOp {
    /// Nothing.
    None,
    /// Now, under the lock under which the entry changes: the place stays mapped, or is found again by the next write
    /// (data file), so that a later operation could erase newer data. Safe before the entry is durable, since the old
    /// entry too may read as what was asked for. Never a shared cluster.
    Now(HostRange, Effect),
    /// A hole once the new entry is durable. In the image file: for those clusters of the released range whose last
    /// reference is gone. In a data file: for the range, before the place can be written again.
    AfterCommit(HostRange),
}

/// What the bytes become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nobody reads them again: advisory, a failure is no error.
    Discard,
    /// They must read as zeros, and may become a hole.
    ZeroMayUnmap,
    /// They must read as zeros, and stay allocated.
    ZeroKeep,
}

/// One decision. The executor writes the entry if it changed, gives references back in the commit, and does the host
/// operation at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use]
pub struct Step {
    /// The entry from now on.
    pub entry: L2Entry,
    /// References to give back; also set only when the entry changes.
    pub release: Release,
    /// What is done on the host; for a cluster kept as it is, without a change of the entry.
    pub host_op: HostOp,
    /// Whether the entry differs from the old one.
    pub changed: bool,
}

impl Step {
    /// Nothing happens.
    const fn unchanged(entry: L2Entry) -> Self {
        Self { entry, release: Release::None, host_op: HostOp::None, changed: false }
    }

    /// Another entry that refers to the same host cluster, or neither to any.
    fn become_entry(old: L2Entry, new: L2Entry, host_op: HostOp) -> Self {
        Self { entry: new, release: Release::None, host_op, changed: new != old }
    }

    /// Another entry that refers to nothing.
    fn let_go(old: L2Entry, new: L2Entry, ctx: &Context) -> Self {
        let (release, host_op) = release(old, ctx);
        Self { entry: new, release, host_op, changed: new != old }
    }
}

/// Discards a whole cluster.
///
/// Afterwards it reads as zeros; with `full`, as the backing file. The one case in which neither can be said (version
/// 2 over a backing file, not `full`) is left unchanged: a discard is advice.
pub fn discard(entry: L2Entry, ctx: &Context) -> Step {
    if ctx.full {
        return Step::let_go(entry, L2Entry::UNALLOCATED, ctx);
    }
    if ctx.geometry.version() < 3 {
        if ctx.has_backing {
            return Step::unchanged(entry);
        }
        return Step::let_go(entry, L2Entry::UNALLOCATED, ctx);
    }
    let zero = L2Entry::zero_plain(&ctx.geometry);
    match entry {
        L2Entry::Plain { host: None, .. } if !ctx.has_backing => Step::unchanged(entry),
        L2Entry::Plain { host: None, .. } => Step::become_entry(entry, zero, HostOp::None),
        L2Entry::Plain { host: Some(host), .. } if ctx.retains(host) => {
            // QEMU leaves what is zero already alone, so that its space is never given back.
            retain(entry, host, ctx, ctx.policy.unref != Unref::RetainQemu)
        }
        L2Entry::Plain { host: Some(_), .. } | L2Entry::Compressed(_) => Step::let_go(entry, zero, ctx),
    }
}

/// Makes a whole cluster read as zeros. `may_unmap`: the host cluster need not stay allocated.
///
/// Always of type [`DiscardType::Request`] and never `full`, whatever `ctx` says. Compressed clusters are dropped in any
/// case; in version 2 all are.
///
/// `None`: the entry cannot say it (version 2 over a backing file). Write zero bytes instead.
#[must_use]
pub fn write_zeroes(entry: L2Entry, ctx: &Context, may_unmap: bool) -> Option<Step> {
    let ctx = &Context { kind: DiscardType::Request, full: false, ..*ctx };
    if ctx.geometry.version() < 3 {
        return (!ctx.has_backing).then(|| discard(entry, ctx));
    }
    let zero = L2Entry::zero_plain(&ctx.geometry);
    Some(match entry {
        L2Entry::Plain { host: None, .. } => Step::become_entry(entry, zero, HostOp::None),
        L2Entry::Plain { host: Some(host), .. } if !may_unmap => {
            let kept = L2Entry::zero_allocated(host, &ctx.geometry);
            Step::become_entry(entry, kept, raw_zeros(cluster(host, ctx), ctx))
        }
        L2Entry::Plain { host: Some(host), .. } if ctx.retains(host) => {
            // Here QEMU leaves it alone too, except that it zeroes the whole range of a raw data file first.
            retain(entry, host, ctx, ctx.policy.unref != Unref::RetainQemu || ctx.raw())
        }
        L2Entry::Plain { host: Some(_), .. } | L2Entry::Compressed(_) => Step::let_go(entry, zero, ctx),
    })
}

/// Makes some subclusters read as zeros: the head or tail of a request, with extended L2 entries. The host cluster
/// stays. Subclusters beyond the 32 are ignored. `may_unmap`: a raw data file may get a hole, if the policy makes any.
///
/// `None`: the entry cannot say it (compressed, or standard entries). Write zero bytes instead.
#[must_use]
pub fn write_zeroes_subclusters(
    entry: L2Entry,
    ctx: &Context,
    subclusters: Range<u32>,
    may_unmap: bool,
) -> Option<Step> {
    let L2Entry::Plain { host, parts } = entry else {
        return None;
    };
    if !ctx.geometry.extended_l2() {
        return None;
    }
    let end = subclusters.end.min(ctx.geometry.subclusters());
    let start = subclusters.start.min(end);
    let below = |count: u32| 1_u32.checked_shl(count).map_or(u32::MAX, |bit| bit.wrapping_sub(1));
    let mask = below(end) & !below(start);
    let new =
        L2Entry::Plain { host, parts: Subclusters { allocated: parts.allocated & !mask, zero: parts.zero | mask } };
    let host_op = match host {
        Some(host) if mask != 0 => {
            let size = ctx.geometry.subcluster_size();
            let offset = host.offset.saturating_add(u64::from(start).saturating_mul(size));
            let length = u64::from(end.saturating_sub(start)).saturating_mul(size);
            let range = HostRange { offset, length };
            let holes = may_unmap && ctx.passes() && ctx.policy.retained_op == RetainedOp::Punch;
            if ctx.raw() && holes { HostOp::Now(range, Effect::ZeroMayUnmap) } else { raw_zeros(range, ctx) }
        }
        Some(_) | None => HostOp::None,
    };
    Some(Step::become_entry(entry, new, host_op))
}

/// What goes with an entry that is dropped or replaced: its references, and the bytes behind them.
///
/// In the image file the holes wait for the commit. In a data file they are made now, except for a `full` discard:
/// before that is durable, the old entry must still find its data.
#[must_use]
pub fn release(entry: L2Entry, ctx: &Context) -> (Release, HostOp) {
    let range = match entry {
        L2Entry::Plain { host: None, .. } => return (Release::None, HostOp::None),
        L2Entry::Plain { host: Some(host), .. } => cluster(host, ctx),
        L2Entry::Compressed(range) => HostRange { offset: range.offset, length: range.length },
    };
    if !ctx.geometry.data_file() {
        let host_op = if ctx.passes() { HostOp::AfterCommit(range) } else { HostOp::None };
        return (Release::Refs(range), host_op);
    }
    let host_op = match (entry, ctx.passes()) {
        // There are none in images with a data file.
        (L2Entry::Compressed(_), _) => HostOp::None,
        (L2Entry::Plain { .. }, true) if ctx.full => HostOp::AfterCommit(range),
        (L2Entry::Plain { .. }, true) if ctx.raw() => HostOp::Now(range, Effect::ZeroMayUnmap),
        (L2Entry::Plain { .. }, true) => HostOp::Now(range, Effect::Discard),
        (L2Entry::Plain { .. }, false) if ctx.full => HostOp::None,
        (L2Entry::Plain { .. }, false) => raw_zeros(range, ctx),
    };
    (Release::None, host_op)
}

/// Zeros in a cluster that is kept. `again`: also what is zero already is passed down.
fn retain(entry: L2Entry, host: HostRef, ctx: &Context, again: bool) -> Step {
    let kept = L2Entry::zero_allocated(host, &ctx.geometry);
    let range = cluster(host, ctx);
    let host_op = if !ctx.passes() || ctx.shared(host) {
        raw_zeros(range, ctx)
    } else if again || kept != entry {
        match ctx.policy.retained_op {
            RetainedOp::Punch if ctx.raw() => HostOp::Now(range, Effect::ZeroMayUnmap),
            RetainedOp::Punch => HostOp::Now(range, Effect::Discard),
            RetainedOp::ZeroRange => HostOp::Now(range, Effect::ZeroKeep),
            RetainedOp::None => raw_zeros(range, ctx),
        }
    } else {
        // Zeros written once more would fill the hole of the first time.
        HostOp::None
    };
    Step::become_entry(entry, kept, host_op)
}

/// The zeros that only a raw data file needs: elsewhere the entry says it all.
fn raw_zeros(range: HostRange, ctx: &Context) -> HostOp {
    if ctx.raw() { HostOp::Now(range, Effect::ZeroKeep) } else { HostOp::None }
}

fn cluster(host: HostRef, ctx: &Context) -> HostRange {
    HostRange { offset: host.offset, length: ctx.geometry.cluster_size() }
}
