//! What the parts of the module are.

/// Code that is loaded when it is first called.
pub(crate) struct Part {
    /// The file is `qcowkit_NAME.wasm`.
    pub(crate) name: &'static str,
    /// The parts that its code calls, which come before it here and are loaded before it.
    pub(crate) needs: &'static [&'static str],
    /// Its exports, by their names, or by the beginning of them if that ends in `_`. The part is what only they reach, and
    /// what only parts reach that need this one.
    pub(crate) exports: &'static [&'static str],
    /// What stands in the names of functions that are called through the table, by this part's code alone.
    pub(crate) code: &'static [&'static str],
    /// What stands in the names of functions that other code calls in its midst. It has seen to it that the part is there
    /// (`wasm/src/parts.rs`), or such calls do not happen in this build.
    pub(crate) gates: &'static [&'static str],
    /// What stands in the symbols of constants that only this part's code reads.
    pub(crate) constants: &'static [&'static str],
}

/// All parts. What opens, reads, maps, writes and saves is in none of them.
pub(crate) const PARTS: &[Part] = &[
    Part {
        name: "codecs",
        needs: &[],
        exports: &[],
        code: &["<qcowkit_core::codec::BuiltinCodecs as", "<&ruzstd::"],
        gates: &["<qcowkit_core::codec::BuiltinCodecs as"],
        // Tables of checksums; with the lengths of their names, as symbols have them.
        constants: &["7zlib_rs5crc32"],
    },
    Part {
        name: "crypto",
        needs: &[],
        exports: &[],
        code: &["<aes::Aes"],
        // The first four are reached with a key alone. The others are called in the making of encrypted images as well, which
        // nobody can ask this build for.
        gates: &[
            "::encryption::unlocked::DataCipher>::open",
            ">::read_encrypted",
            ">::move_encrypted",
            ">::write_encrypted_zeros",
            "<qcowkit_core::crypto::hash::HashAlgorithm>::digest",
            "<qcowkit_core::crypto::hash::HashAlgorithm>::derive_key",
            "<qcowkit_core::crypto::cipher::CipherSpec>::with_key",
            "<qcowkit_core::crypto::cipher::SectorCipher>::each",
        ],
        constants: &[],
    },
    // What goes over the metadata of a whole image.
    Part { name: "walk", needs: &[], exports: &[], code: &[], gates: &[], constants: &[] },
    Part {
        name: "change",
        needs: &[],
        exports: &[
            "rawimage_create",
            "rawimage_discard",
            "rawimage_resize",
            "rawimage_create_snapshot",
            "rawimage_apply_snapshot",
            "rawimage_delete_snapshot",
            "rawimage_snapshots",
            "rawimage_open_snapshot",
            "rawimage_bitmaps",
            "rawimage_bitmap_ranges",
            "rawimage_add_bitmap",
            "rawimage_remove_bitmap",
        ],
        code: &[],
        gates: &[],
        constants: &[],
    },
    Part {
        name: "check",
        needs: &["walk"],
        exports: &["rawimage_check", "rawimage_repair", "rawimage_audit"],
        // Repairs are tried on overlays of their own; verdicts quote names.
        code: &[
            "OverlayStorage<&dyn qcowkit_core::storage::ReadStorage>",
            "OverlayStorage<&&dyn qcowkit_core::storage::ReadStorage>",
            "<alloc::vec::Vec<alloc::string::String> as core::fmt::Debug>",
        ],
        gates: &[],
        constants: &[],
    },
    Part {
        name: "look",
        needs: &["walk"],
        exports: &[
            "rawimage_info",
            "rawimage_inspect",
            "rawimage_inspect_",
            "rawimage_fields",
            "rawimage_regions",
            "rawimage_partitions",
            "rawimage_analyze",
            "rawimage_cluster_runs",
            "rawimage_clusters",
        ],
        code: &[],
        gates: &[],
        constants: &[],
    },
    Part {
        name: "lab",
        // Its disks are images of their own, which nobody asks for codecs.
        needs: &["codecs", "walk", "change"],
        exports: &["rawtrace_", "rawreplay_", "rawdisk_"],
        code: &[
            "<qcowkit_core::operations::lab::disk::Below as",
            "qcowkit_core::operations::lab::",
            "<u128 as core::fmt::Display>",
        ],
        gates: &[],
        constants: &[],
    },
];
