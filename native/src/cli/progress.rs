//! Progress of long work: qemu-img's on standard output, a bar on the terminal in our own mode.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::personality::Personality;

/// Shows how far work is.
pub(crate) enum Progress<'a> {
    /// Nothing is shown.
    Silent,
    /// `    (12.34/100%)\r` on standard output, at steps of one percent at least.
    Qemu {
        /// Standard output.
        out: &'a mut dyn Write,
        /// Percent shown last.
        last: f64,
    },
    /// A bar on standard error, from the first second on.
    Bar {
        /// The bar.
        bar: ProgressBar,
        /// When work began.
        begun: Instant,
        /// Show it at once.
        asked: bool,
    },
}

impl<'a> Progress<'a> {
    /// What fits the personality: with `-p` (asked), or on a terminal for work of more than a second; never if quiet.
    pub(crate) fn new(personality: Personality, asked: bool, quiet: bool, out: &'a mut dyn Write) -> Self {
        let terminal = std::io::stderr().is_terminal();
        match personality {
            _ if quiet => Self::Silent,
            Personality::QemuImg | Personality::QemuIo if asked => Self::Qemu { out, last: f64::NEG_INFINITY },
            Personality::Own if terminal || asked => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                let style = ProgressStyle::with_template(
                    "{bar:40.cyan} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
                );
                if let Ok(style) = style {
                    bar.set_style(style);
                }
                Self::Bar { bar, begun: Instant::now(), asked }
            }
            _ => Self::Silent,
        }
    }

    /// The same for work that is counted in operations, not bytes.
    #[must_use]
    pub(crate) fn in_operations(self) -> Self {
        if let Self::Bar { bar, .. } = &self
            && let Ok(style) = ProgressStyle::with_template("{bar:40.cyan} {percent:>3}% {human_pos}/{human_len} {eta}")
        {
            bar.set_style(style);
        }
        self
    }

    /// Bytes done, of bytes to do.
    pub(crate) fn step(&mut self, done: u64, total: u64) {
        match self {
            Self::Silent => {}
            Self::Qemu { out, last } => {
                let percent = if total == 0 { 100.0 } else { done as f64 / total as f64 * 100.0 };
                if percent - *last >= 1.0 || (percent >= 100.0 && *last < 100.0) {
                    *last = percent;
                    // That nobody listens will show when the result is printed.
                    let _ = write!(out, "    ({percent:.2}/100%)\r").and_then(|()| out.flush());
                }
            }
            Self::Bar { bar, begun, asked } => {
                if bar.is_hidden() && (*asked || begun.elapsed().as_secs() >= 1) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_length(total);
                bar.set_position(done);
            }
        }
    }

    /// Ends it; done or not, as qemu-img's `convert` shows it.
    pub(crate) fn finish(self, complete: bool) {
        match self {
            Self::Silent => {}
            Self::Qemu { out, .. } => {
                let text: &[u8] = if complete { b"    (100.00/100%)\r\n" } else { b"\n" };
                let _ = out.write_all(text);
            }
            Self::Bar { bar, .. } => bar.finish_and_clear(),
        }
    }

    /// Ends it before the result is printed; true if a line end has to follow that.
    pub(crate) fn leave(self) -> bool {
        match self {
            Self::Silent => false,
            Self::Qemu { .. } => true,
            Self::Bar { bar, .. } => {
                bar.finish_and_clear();
                false
            }
        }
    }
}
