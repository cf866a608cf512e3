//! What must hold of every decision: all entries, in all contexts, under all policies.

use std::ops::Range;

use qcowkit_core::format::{CompressedRange, Geometry, HostOffset, HostRef, L2Entry, Subclusters};
use qcowkit_core::metadata::decide::{
    Context, DiscardPolicy, DiscardType, Effect, HostOp, HostRange, Pass, Release, RetainedOp, Step, Unref, discard,
    release, write_zeroes, write_zeroes_subclusters,
};

const HOST: u64 = 0x50000;
const BOTH: [bool; 2] = [false, true];

/// Where the guest finds the bytes of one subcluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Zeros,
    Backing,
    Host(u64),
    Compressed,
}

fn geometries() -> Vec<Geometry> {
    let with = |version, extended, data_file| Geometry::new(version, 16, 4, extended, data_file, 1 << 30).unwrap();
    vec![with(2, false, false), with(3, false, false), with(3, true, false), with(3, false, true), with(3, true, true)]
}

fn entries(geometry: &Geometry) -> Vec<L2Entry> {
    let hosts = if geometry.data_file() {
        // The first cluster of a data file has place 0.
        vec![(HOST, true), (0, true)]
    } else {
        vec![(HOST, true), (HOST, false)]
    };
    let hosts = hosts.into_iter().map(|(offset, copied)| Some(HostRef { offset: HostOffset::new(offset), copied }));
    let bitmaps: &[(u32, u32)] = match (geometry.extended_l2(), geometry.version()) {
        (true, _) => &[
            (0, 0),
            (u32::MAX, 0),
            (0, u32::MAX),
            (0xf, 0xf0),
            (0xf, 0),
            (0, 0xf0),
            (1 << 31, u32::MAX >> 1),
            (0x5555_5555, 0xaaaa_aaaa),
        ],
        (false, 2) => &[(1, 0)],
        (false, _) => &[(1, 0), (0, 1)],
    };
    let mut entries = vec![L2Entry::UNALLOCATED];
    for &(allocated, zero) in bitmaps {
        let parts = Subclusters { allocated, zero };
        if allocated == 0 {
            entries.push(L2Entry::Plain { host: None, parts });
        }
        entries.extend(hosts.clone().map(|host| L2Entry::Plain { host, parts }));
    }
    if !geometry.data_file() {
        // Across the border of two host clusters.
        let range = CompressedRange::fits(HostOffset::new(0x5fe00), 3000, geometry).unwrap();
        entries.push(L2Entry::Compressed(range));
    }
    entries
}

fn contexts(geometry: Geometry) -> Vec<Context> {
    let mut contexts = Vec::new();
    for kind in
        [DiscardType::Never, DiscardType::Always, DiscardType::Request, DiscardType::Snapshot, DiscardType::Other]
    {
        for unref in [Unref::Always, Unref::RetainUnshared, Unref::RetainQemu] {
            for retained_op in [RetainedOp::Punch, RetainedOp::ZeroRange, RetainedOp::None] {
                for pass in 0..8_u8 {
                    let pass = Pass { request: pass & 1 != 0, snapshot: pass & 2 != 0, other: pass & 4 != 0 };
                    let policy = DiscardPolicy { unref, pass, retained_op };
                    for (has_backing, full) in [(false, false), (false, true), (true, false), (true, true)] {
                        for data_file_raw in BOTH {
                            // A raw data file has no backing file beside it.
                            if data_file_raw && (has_backing || !geometry.data_file()) {
                                continue;
                            }
                            contexts.push(Context { geometry, has_backing, data_file_raw, full, kind, policy });
                        }
                    }
                }
            }
        }
    }
    contexts
}

fn views(entry: L2Entry, ctx: &Context) -> Vec<View> {
    let size = ctx.geometry.subcluster_size();
    (0..ctx.geometry.subclusters())
        .map(|part| match entry {
            L2Entry::Compressed(_) => View::Compressed,
            L2Entry::Plain { parts, .. } if parts.zero >> part & 1 == 1 => View::Zeros,
            L2Entry::Plain { host: Some(host), parts } if parts.allocated >> part & 1 == 1 => {
                View::Host(host.offset.get() + u64::from(part) * size)
            }
            L2Entry::Plain { .. } if ctx.has_backing => View::Backing,
            L2Entry::Plain { .. } => View::Zeros,
        })
        .collect()
}

/// Host clusters that an entry refers to, once for each reference.
fn references(entry: L2Entry, geometry: &Geometry) -> Vec<u64> {
    match entry {
        L2Entry::Plain { host: None, .. } => vec![],
        L2Entry::Plain { .. } if geometry.data_file() => vec![],
        L2Entry::Plain { host: Some(host), .. } => vec![host.offset.get()],
        L2Entry::Compressed(range) => clusters(HostRange { offset: range.offset, length: range.length }, geometry),
    }
}

fn clusters(range: HostRange, geometry: &Geometry) -> Vec<u64> {
    let (start, size) = (range.offset.get(), geometry.cluster_size());
    (geometry.align_down(start)..start + range.length).step_by(usize::try_from(size).unwrap()).collect()
}

fn overlaps(range: HostRange, view: View, ctx: &Context) -> bool {
    let (start, end) = (range.offset.get(), range.offset.get() + range.length);
    matches!(view, View::Host(at) if at < end && start < at + ctx.geometry.subcluster_size())
}

/// What holds for every step, whoever asked for it.
fn check(old: L2Entry, step: Step, ctx: &Context, what: &str) {
    let geometry = &ctx.geometry;
    let place = format!("{what} {old:?}\n{ctx:?}\n{step:?}");
    assert_eq!(step.changed, step.entry != old, "{place}");
    assert_eq!(L2Entry::decode(step.entry.encode(geometry), geometry), Ok(step.entry), "{place}");

    // References are conserved.
    let mut kept = references(step.entry, geometry);
    if let Release::Refs(range) = step.release {
        assert!(step.changed, "{place}");
        kept.extend(clusters(range, geometry));
    }
    assert_eq!(kept, references(old, geometry), "{place}");

    let passes = ctx.policy.passes(ctx.kind);
    match step.host_op {
        HostOp::None => {
            // A raw file may not keep what the guest no longer reads, unless the place itself goes.
            let lost = views(old, ctx).iter().zip(views(step.entry, ctx)).any(|(old, new)| *old != new);
            assert!(!ctx.data_file_raw || !lost || old.host().is_none() || ctx.full, "{place}");
        }
        HostOp::Now(range, effect) => {
            let host = old.host().expect("a host cluster");
            assert!(host.copied || geometry.data_file(), "shared: {place}");
            // Until the entry is durable the old one counts, and must not read what neither the old nor the new says.
            assert!(!ctx.full, "{place}");
            assert!(host.offset <= range.offset && range.length > 0, "{place}");
            assert!(range.offset.get() + range.length <= host.offset.get() + geometry.cluster_size(), "{place}");
            assert!(!views(step.entry, ctx).iter().any(|&view| overlaps(range, view, ctx)), "still read: {place}");
            if ctx.data_file_raw {
                assert_ne!(effect, Effect::Discard, "{place}");
            }
            assert!(passes || (ctx.data_file_raw && effect == Effect::ZeroKeep), "{place}");
        }
        HostOp::AfterCommit(range) => {
            assert!(passes && step.changed, "{place}");
            assert_eq!(step.entry.host(), None, "{place}");
            match step.release {
                Release::Refs(released) => assert_eq!(range, released, "{place}"),
                Release::None => assert!(geometry.data_file() && ctx.full, "{place}"),
            }
        }
    }
}

/// The same decision on its own result changes nothing; only the hole in a kept cluster may be made once more.
fn check_again(first: Step, second: Step, what: &str) {
    assert!(!second.changed && second.entry == first.entry, "{what}: {first:?} {second:?}");
    assert_eq!(second.release, Release::None, "{what}: {first:?} {second:?}");
    match second.host_op {
        HostOp::None => {}
        HostOp::Now(..) => assert!(first.entry.host().is_some(), "{what}: {first:?} {second:?}"),
        HostOp::AfterCommit(_) => panic!("{what}: {first:?} {second:?}"),
    }
}

fn every(mut examine: impl FnMut(L2Entry, &Context)) {
    let mut count = 0;
    for geometry in geometries() {
        for ctx in contexts(geometry) {
            for entry in entries(&geometry) {
                assert_eq!(L2Entry::decode(entry.encode(&geometry), &geometry), Ok(entry));
                examine(entry, &ctx);
                count += 1;
            }
        }
    }
    assert!(count > 50_000, "{count} cases");
}

#[test]
fn discarded_clusters_read_as_promised() {
    every(|entry, ctx| {
        let step = discard(entry, ctx);
        check(entry, step, ctx, "discard");
        let promised = if ctx.full && ctx.has_backing { View::Backing } else { View::Zeros };
        if ctx.geometry.version() == 2 && ctx.has_backing && !ctx.full {
            assert_eq!((step.entry, step.release, step.host_op), (entry, Release::None, HostOp::None));
        } else {
            assert!(views(step.entry, ctx).iter().all(|&view| view == promised), "{entry:?} {ctx:?} {step:?}");
        }
        if ctx.full {
            assert_eq!(step.entry, L2Entry::UNALLOCATED);
        }
        check_again(step, discard(step.entry, ctx), "discard");
    });
}

#[test]
fn only_requests_keep_clusters_and_only_under_a_policy_that_says_so() {
    every(|entry, ctx| {
        let Some(host) = entry.host() else { return };
        let step = discard(entry, ctx);
        let gone = step.entry.host().is_none();
        let kept = ctx.kind == DiscardType::Request && !ctx.full && ctx.geometry.version() == 3;
        let expected = match ctx.policy.unref {
            Unref::Always => false,
            Unref::RetainUnshared => kept && (host.copied || ctx.geometry.data_file()),
            Unref::RetainQemu => kept,
        };
        let refused = ctx.geometry.version() == 2 && ctx.has_backing && !ctx.full;
        assert_eq!(gone, !expected && !refused, "{entry:?} {ctx:?} {step:?}");
        // A kept cluster keeps its flag too, so that it is overwritten in place.
        assert!(gone || step.entry.host() == Some(host));
    });
}

#[test]
fn zeroed_clusters_read_as_zeros() {
    every(|entry, ctx| {
        for may_unmap in BOTH {
            let Some(step) = write_zeroes(entry, ctx, may_unmap) else {
                assert!(ctx.geometry.version() == 2 && ctx.has_backing);
                continue;
            };
            // Whatever the context says, this is a request and not a full discard.
            let request = Context { kind: DiscardType::Request, full: false, ..*ctx };
            assert_eq!(Some(step), write_zeroes(entry, &request, may_unmap));
            check(entry, step, &request, "write_zeroes");
            assert!(views(step.entry, ctx).iter().all(|&view| view == View::Zeros), "{entry:?} {ctx:?} {step:?}");
            if !may_unmap && ctx.geometry.version() == 3 {
                assert_eq!(step.entry.host(), entry.host(), "stays allocated");
            }
            check_again(step, write_zeroes(step.entry, ctx, may_unmap).unwrap(), "write_zeroes");
        }
    });
}

#[test]
fn zeroed_subclusters_read_as_zeros_and_the_others_as_before() {
    let range = |start, end| Range { start, end };
    every(|entry, ctx| {
        for range in [range(0, 0), range(0, 1), range(3, 17), range(31, 32), range(0, 32), range(30, 99), range(7, 2)] {
            let Some(step) = write_zeroes_subclusters(entry, ctx, range.clone(), false) else {
                assert!(!ctx.geometry.extended_l2() || matches!(entry, L2Entry::Compressed(_)));
                continue;
            };
            // Nothing is given up here, so nothing is passed down but the zeros of a raw file.
            let never = Context { kind: DiscardType::Never, full: false, ..*ctx };
            check(entry, step, &never, "subclusters");
            assert_eq!(step.entry.host(), entry.host());
            let views = views(entry, ctx).into_iter().zip(views(step.entry, ctx)).zip(0_u32..);
            for ((before, after), part) in views {
                let expected = if range.contains(&part) { View::Zeros } else { before };
                assert_eq!(after, expected, "{part} of {entry:?} {ctx:?} {step:?}");
            }
            if let HostOp::Now(bytes, _) = step.host_op {
                let size = ctx.geometry.subcluster_size();
                assert_eq!(bytes.length, (u64::from(range.end.min(32)) - u64::from(range.start)) * size);
                assert_eq!(bytes.offset.get(), entry.host().unwrap().offset.get() + u64::from(range.start) * size);
            }
            check_again(step, write_zeroes_subclusters(step.entry, ctx, range, false).unwrap(), "subclusters");
        }
    });
}

#[test]
fn a_replaced_mapping_gives_its_references_back() {
    every(|entry, ctx| {
        let (release, host_op) = release(entry, ctx);
        let released = match release {
            Release::None => vec![],
            Release::Refs(range) => clusters(range, &ctx.geometry),
        };
        assert_eq!(released, references(entry, &ctx.geometry));
        if ctx.kind == DiscardType::Never && !ctx.data_file_raw {
            assert_eq!(host_op, HostOp::None);
        }
        if let HostOp::Now(..) = host_op {
            assert!(ctx.geometry.data_file());
        }
    });
}

#[test]
fn retained_clusters_get_the_operation_that_was_asked_for() {
    let geometry = Geometry::new(3, 16, 4, false, false, 1 << 30).unwrap();
    let host = HostRef { offset: HostOffset::new(HOST), copied: true };
    let range = HostRange { offset: host.offset, length: 0x10000 };
    for (retained_op, expected) in [
        (RetainedOp::Punch, HostOp::Now(range, Effect::Discard)),
        (RetainedOp::ZeroRange, HostOp::Now(range, Effect::ZeroKeep)),
        (RetainedOp::None, HostOp::None),
    ] {
        let policy = DiscardPolicy { unref: Unref::RetainUnshared, retained_op, ..DiscardPolicy::default() };
        let ctx = Context::request(geometry, policy);
        for entry in [L2Entry::normal(host, &geometry), L2Entry::zero_allocated(host, &geometry)] {
            assert_eq!(discard(entry, &ctx).host_op, expected);
            assert_eq!(write_zeroes(entry, &ctx, true).unwrap().host_op, expected);
            assert_eq!(write_zeroes(entry, &ctx, false).unwrap().host_op, HostOp::None);
        }
    }
}

#[test]
fn defaults_are_those_of_qemu_with_discard_unmap() {
    let policy = DiscardPolicy::default();
    assert_eq!(policy.unref, Unref::Always);
    let passes = |kind| policy.passes(kind);
    assert!(passes(DiscardType::Always) && passes(DiscardType::Request) && passes(DiscardType::Snapshot));
    assert!(!passes(DiscardType::Never) && !passes(DiscardType::Other));
}
