//! The table of results and the page around it.

use std::fmt::Write;

use super::{FEWEST_RUNS, Measured, RUNS};
use crate::run;

/// A Markdown table, one row a case.
pub(super) fn table(results: &[Measured]) -> String {
    let mut table = String::from(
        "| job | times as fast | wanted | qemu | qcowkit | processor time, qemu | qcowkit | peak memory, qemu | qcowkit |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for Measured { case, qemu, ours } in results {
        let ratio = qemu.seconds / ours.seconds;
        let wanted = case.wanted;
        let fast = if ratio >= wanted { "" } else { " (missed)" };
        let lean = if !case.lean || ours.peak_kib <= qemu.peak_kib { "" } else { " (missed)" };
        let _ = writeln!(
            table,
            "| {} | **{ratio:.2}**{fast} | {wanted:.0} | {:.3} s | {:.3} s | {:.3} s | {:.3} s | {} | {}{lean} |",
            case.name,
            qemu.seconds,
            ours.seconds,
            qemu.processor_seconds,
            ours.processor_seconds,
            mebibytes(qemu.peak_kib),
            mebibytes(ours.peak_kib),
        );
    }
    table
}

/// docs/benchmarks.md.
pub(super) fn page(table: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let first_line = |program: &str| {
        run::ask(run::command(program).arg("--version"))
            .and_then(|text| text.lines().next().map(str::to_owned))
            .unwrap_or_default()
    };
    format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`, which runs both programs in turn on one machine. Only the ratios mean\n\
         anything elsewhere: *times as fast* is QEMU's wall time divided by qcowkit's, so more is better, and *wanted*\n\
         is what the project set out to reach.\n\n\
         {table}\n\
         ## Method\n\n\
         - One run each to warm up, then {RUNS} runs each ({FEWEST_RUNS} where they take long), in turn; the median\n\
         counts.\n\
         - Files are in the page cache. Neither program is asked to bypass it.\n\
         - Processor time (user and system) and peak memory (the largest resident size of any run) are GNU time's.\n\
         - After each case QEMU compares or checks what qcowkit wrote last.\n\
         - *data*: 1 GiB, noise and text in turn. *sparse*: 64 KiB of data in every 16 MiB, holes between. *1 TiB*:\n\
         `preallocation=metadata`, made by qemu-img. *io*: 18,000 writes of 4 to 64 KiB and 12,000 discards of 64 KiB to\n\
         1 MiB, about, all over a new 4 GiB disk, from one script on standard input, with `-d unmap` and each\n\
         program's default cache mode, which is writeback for both: durable after a flush, and both flush at the end.\n\
         - {cores} cores; {}; {}.\n",
        first_line("qemu-img"),
        first_line("rustc"),
    )
}

fn mebibytes(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}
