//! One way to run an image: what is compared in the lab.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

use crate::image::{CreateOptions, DetectZeroes, OpenOptions, Preallocation};
use crate::metadata::{AllocationPolicy, DiscardPolicy, MetadataOptions, Pass, Unref};

/// How an image is made and opened for one replay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct LabConfig {
    /// What it is called in reports.
    pub name: String,
    /// Guest discards are carried out (`discard=unmap`), or succeed and do nothing (`discard=ignore`).
    pub discard: bool,
    /// What a discard does, and whose discards reach the host.
    pub policy: DiscardPolicy,
    /// What happens to writes of zeros.
    pub detect_zeroes: DetectZeroes,
    /// Bytes of a cluster; an existing image keeps its own.
    pub cluster_size: u64,
    /// Subclusters (`extended_l2`); an existing image keeps its own.
    pub extended_l2: bool,
    /// What is reserved when the image is made; an existing image is what it is.
    pub preallocation: Preallocation,
    /// Where new clusters are taken from.
    pub allocation: AllocationPolicy,
    /// How many released bytes may wait before they are committed and reused. 0, the default here, reuses clusters as
    /// early as QEMU does.
    pub quarantine_bytes: u64,
}

impl Default for LabConfig {
    /// QEMU's defaults with `discard=unmap`.
    fn default() -> Self {
        let create = CreateOptions::default();
        Self {
            name: "unmap".into(),
            discard: true,
            policy: DiscardPolicy::default(),
            detect_zeroes: DetectZeroes::Off,
            cluster_size: create.cluster_size,
            extended_l2: create.extended_l2,
            preallocation: create.preallocation,
            allocation: AllocationPolicy::Qemu,
            quarantine_bytes: 0,
        }
    }
}

impl LabConfig {
    /// `discard=ignore`: the image never hears of what the guest needs no more.
    #[must_use]
    pub fn ignore() -> Self {
        Self { name: "ignore".into(), discard: false, ..Self::default() }
    }

    /// `discard=unmap`: discarded clusters are given back.
    #[must_use]
    pub fn unmap() -> Self {
        Self::default()
    }

    /// `discard=unmap,discard-no-unref=on`: discarded clusters keep their place and become holes of the host file.
    #[must_use]
    pub fn no_unref() -> Self {
        let policy = DiscardPolicy { unref: Unref::RetainUnshared, ..DiscardPolicy::default() };
        Self { name: "no-unref".into(), policy, ..Self::default() }
    }

    /// The three policies that people choose from.
    #[must_use]
    pub fn three_policies() -> [Self; 3] {
        [Self::ignore(), Self::unmap(), Self::no_unref()]
    }

    /// What is worth trying before a configuration is recommended: this one under each of the three policies, and
    /// variations of those that discard. Each is named after what it is.
    #[must_use]
    pub fn candidates(&self) -> Vec<Self> {
        let [ignore, unmap, no_unref] = Self::three_policies().map(|policy| Self {
            discard: policy.discard,
            policy: DiscardPolicy { unref: policy.policy.unref, ..self.policy },
            ..self.clone()
        });
        let large = 512 << 10;
        let mut all = vec![
            ignore,
            unmap.clone(),
            no_unref.clone(),
            Self { allocation: AllocationPolicy::FillHoles, ..unmap.clone() },
            Self { allocation: AllocationPolicy::Near, ..unmap.clone() },
            Self { preallocation: Preallocation::Metadata, ..no_unref.clone() },
            Self { cluster_size: large, ..unmap },
            Self { cluster_size: large, ..no_unref.clone() },
            Self { cluster_size: 128 << 10, extended_l2: true, ..no_unref },
        ];
        all.iter_mut().for_each(|config| config.name = config.describe());
        all
    }

    /// The name of the discard policy: `ignore`, `unmap` or `no-unref`.
    #[must_use]
    pub fn policy_name(&self) -> &'static str {
        match (self.discard, self.policy.unref) {
            (false, _) => "ignore",
            (true, Unref::Always) => "unmap",
            (true, Unref::RetainUnshared | Unref::RetainQemu) => "no-unref",
        }
    }

    /// Names the configuration after the policy and everything that differs from the defaults.
    #[must_use]
    pub fn describe(&self) -> String {
        let usual = Self::default();
        let mut name = String::from(self.policy_name());
        let mut add = |part: core::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = name.write_fmt(format_args!(", {part}"));
        };
        let (pass, usual_pass) = (self.policy.pass, Pass::default());
        for (what, is, was) in [
            ("request", pass.request, usual_pass.request),
            ("snapshot", pass.snapshot, usual_pass.snapshot),
            ("other", pass.other, usual_pass.other),
        ] {
            if is != was {
                add(format_args!("pass-discard-{what}={}", if is { "on" } else { "off" }));
            }
        }
        match self.detect_zeroes {
            DetectZeroes::Off => {}
            DetectZeroes::On => add(format_args!("detect-zeroes=on")),
            DetectZeroes::Unmap => add(format_args!("detect-zeroes=unmap")),
        }
        if self.cluster_size != usual.cluster_size {
            add(format_args!("{} KiB clusters", self.cluster_size / 1024));
        }
        if self.extended_l2 {
            add(format_args!("subclusters"));
        }
        match self.preallocation {
            Preallocation::Off => {}
            Preallocation::Metadata => add(format_args!("preallocation=metadata")),
            Preallocation::Falloc => add(format_args!("preallocation=falloc")),
            Preallocation::Full => add(format_args!("preallocation=full")),
        }
        match self.allocation {
            AllocationPolicy::Qemu => {}
            AllocationPolicy::FillHoles => add(format_args!("fill-holes")),
            AllocationPolicy::Near => add(format_args!("near")),
        }
        if self.quarantine_bytes != usual.quarantine_bytes {
            add(format_args!("quarantine {} MiB", self.quarantine_bytes >> 20));
        }
        name
    }

    /// How the image is made.
    pub(super) fn create_options(&self) -> CreateOptions {
        // Zeros that are written lie where zeros that are reserved lie, and writing a terabyte of them takes minutes.
        let preallocation = match self.preallocation {
            Preallocation::Full => Preallocation::Falloc,
            other => other,
        };
        CreateOptions {
            cluster_size: self.cluster_size,
            extended_l2: self.extended_l2,
            preallocation,
            ..CreateOptions::default()
        }
    }

    /// How the image is opened.
    pub(super) fn open_options(&self) -> OpenOptions {
        OpenOptions {
            discard: self.discard,
            policy: self.policy,
            detect_zeroes: self.detect_zeroes,
            metadata: MetadataOptions {
                allocation: self.allocation,
                quarantine_bytes: self.quarantine_bytes,
                pass_discard_other: self.policy.pass.other,
                ..MetadataOptions::default()
            },
            ..OpenOptions::default()
        }
    }
}
