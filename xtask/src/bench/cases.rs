//! What is timed. Commands run in the folder of the fixtures, without a shell; words are split at spaces.

/// One job done by both programs.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) fixtures: &'static [&'static str],
    /// Run before every timed run, not timed.
    pub(super) prepare: &'static str,
    pub(super) qemu: &'static str,
    pub(super) ours: &'static str,
    /// The file that is standard input.
    pub(super) input: Option<&'static str>,
    /// How many times as fast qcowkit is wanted to be.
    pub(super) wanted: f64,
    /// Whether qcowkit is wanted to take no more memory.
    pub(super) lean: bool,
    /// Proves what the last run of qcowkit wrote.
    pub(super) verify: &'static [&'static str],
    /// Files to remove when the case is over.
    pub(super) leaves: &'static [&'static str],
}

/// A case in which both programs read one file and write `out`.
const CONVERT: Case = Case {
    name: "",
    fixtures: &[],
    prepare: "rm -f out",
    qemu: "",
    ours: "",
    input: None,
    wanted: 1.0,
    lean: false,
    verify: &[],
    leaves: &["out"],
};

/// A case in which both programs only look.
const LOOK: Case =
    Case { fixtures: &["huge.qcow2"], prepare: "true", wanted: 2.0, lean: true, verify: &[], leaves: &[], ..CONVERT };

pub(super) const CASES: [Case; 8] = [
    Case {
        name: "convert raw to qcow2, 1 GiB of data",
        fixtures: &["data.raw"],
        qemu: "qemu-img convert -f raw -O qcow2 data.raw out",
        ours: "./qcowkit convert -f raw -O qcow2 data.raw out",
        verify: &["qemu-img compare -f raw -F qcow2 data.raw out"],
        ..CONVERT
    },
    Case {
        name: "convert qcow2 to raw, 1 GiB of data",
        fixtures: &["data.raw", "data.qcow2"],
        qemu: "qemu-img convert -f qcow2 -O raw data.qcow2 out",
        ours: "./qcowkit convert -f qcow2 -O raw data.qcow2 out",
        verify: &["qemu-img compare -f raw -F raw data.raw out"],
        ..CONVERT
    },
    Case {
        name: "convert raw to qcow2, sparse 64 GiB disk",
        fixtures: &["sparse.raw"],
        qemu: "qemu-img convert -f raw -O qcow2 sparse.raw out",
        ours: "./qcowkit convert -f raw -O qcow2 sparse.raw out",
        verify: &["qemu-img compare -f raw -F qcow2 sparse.raw out"],
        ..CONVERT
    },
    Case {
        name: "convert qcow2 to raw, sparse 64 GiB disk",
        fixtures: &["sparse.raw", "sparse.qcow2"],
        qemu: "qemu-img convert -f qcow2 -O raw sparse.qcow2 out",
        ours: "./qcowkit convert -f qcow2 -O raw sparse.qcow2 out",
        verify: &["qemu-img compare -f raw -F raw sparse.raw out"],
        ..CONVERT
    },
    Case {
        name: "convert -c raw to qcow2, 1 GiB of data",
        fixtures: &["data.raw"],
        qemu: "qemu-img convert -c -f raw -O qcow2 data.raw out",
        ours: "./qcowkit convert -c -f raw -O qcow2 data.raw out",
        verify: &["qemu-img compare -f raw -F qcow2 data.raw out"],
        ..CONVERT
    },
    Case {
        name: "check, 1 TiB image with preallocated metadata",
        qemu: "qemu-img check -f qcow2 --output=json huge.qcow2",
        ours: "./qcowkit check -f qcow2 --output=json huge.qcow2",
        ..LOOK
    },
    Case {
        name: "map, 1 TiB image with preallocated metadata",
        qemu: "qemu-img map -f qcow2 --output=json huge.qcow2",
        ours: "./qcowkit map -f qcow2 --output=json huge.qcow2",
        ..LOOK
    },
    Case {
        name: "io, 30,000 mixed writes and discards",
        fixtures: &["io.txt", "io.qcow2"],
        prepare: "qemu-img create -q -f qcow2 out 4G",
        qemu: "qemu-io -f qcow2 -d unmap out",
        ours: "./qcowkit io -f qcow2 -d unmap out",
        input: Some("io.txt"),
        wanted: 10.0,
        verify: &["qemu-img check -q -f qcow2 out", "qemu-img compare -f qcow2 -F qcow2 io.qcow2 out"],
        ..CONVERT
    },
];
