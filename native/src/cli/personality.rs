//! Whose part is played: qcowkit's own, or that of the program by whose name we were called.

use std::ffi::OsStr;
use std::path::Path;

/// The program that is spoken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Personality {
    /// qcowkit itself, with safe defaults.
    Own,
    /// A stand-in for `qemu-img`: its grammar, messages, exit codes and defaults.
    QemuImg,
    /// A stand-in for `qemu-io`.
    QemuIo,
}

impl Personality {
    /// From the name that the program was called by.
    #[must_use]
    pub(crate) fn of(program: &OsStr) -> Self {
        match Path::new(program).file_stem().and_then(OsStr::to_str) {
            Some("qemu-img") => Self::QemuImg,
            Some("qemu-io") => Self::QemuIo,
            _ => Self::Own,
        }
    }

    /// The name in front of messages.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Own => "qcowkit",
            Self::QemuImg => "qemu-img",
            Self::QemuIo => "qemu-io",
        }
    }

    /// Whether it is qcowkit itself.
    #[must_use]
    pub(crate) const fn is_own(self) -> bool {
        matches!(self, Self::Own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        for (name, personality) in [
            ("qcowkit", Personality::Own),
            ("/usr/bin/qemu-img", Personality::QemuImg),
            ("./qemu-io", Personality::QemuIo),
            ("qemu-img.exe", Personality::QemuImg),
            ("qemu-image", Personality::Own),
            ("", Personality::Own),
        ] {
            assert_eq!(Personality::of(OsStr::new(name)), personality, "{name}");
        }
    }
}
