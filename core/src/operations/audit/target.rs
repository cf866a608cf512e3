//! Where a name in an image leads, by its text alone.

use alloc::string::String;

use crate::format::Name;

/// Where a name leads, as QEMU understands it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "target", content = "protocol", rename_all = "snake_case"))]
pub enum Target {
    /// A file in the directory of the image or below it.
    Below,
    /// A relative path that leaves the directory of the image.
    Outside,
    /// An absolute path.
    Absolute,
    /// A `json:` description: any driver with any options (CVE-2024-4467).
    Json,
    /// Another protocol, such as `nbd` or `https`.
    Protocol(String),
    /// Nothing: the name is empty.
    Empty,
}

impl Target {
    /// Classifies a name.
    #[must_use]
    pub fn of(name: &Name) -> Self {
        let bytes = name.as_bytes();
        // A colon before any slash ends the name of a protocol.
        let end = bytes.iter().position(|&byte| byte == b':' || byte == b'/');
        let protocol = end.filter(|&end| bytes.get(end) == Some(&b':')).and_then(|end| bytes.get(..end));
        match protocol {
            Some(b"json") => return Self::Json,
            Some(b"file") => {
                // QEMU strips this once; what follows is a path, whatever colons it has.
                return Self::of_path(bytes.strip_prefix(b"file:").unwrap_or(bytes));
            }
            Some(protocol) if !protocol.is_empty() => {
                return Self::Protocol(String::from_utf8_lossy(protocol).into_owned());
            }
            Some(_) | None => {}
        }
        Self::of_path(bytes)
    }

    fn of_path(path: &[u8]) -> Self {
        if path.is_empty() {
            return Self::Empty;
        }
        if path.first() == Some(&b'/') {
            return Self::Absolute;
        }
        // How many directories below the image's own each step is.
        let mut depth = 0u32;
        for step in path.split(|&byte| byte == b'/') {
            match step {
                b"" | b"." => {}
                b".." => match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => return Self::Outside,
                },
                _ => depth = depth.saturating_add(1),
            }
        }
        Self::Below
    }

    /// The place in words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Below => "below the image's own directory".into(),
            Self::Outside => "outside the image's own directory".into(),
            Self::Absolute => "an absolute path".into(),
            Self::Json => "a json: description, which can name any driver and any file".into(),
            Self::Protocol(protocol) => alloc::format!("the protocol {protocol:?}"),
            Self::Empty => "nowhere".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_where_qemu_would_go() {
        let protocol = |name: &str| Target::Protocol(name.into());
        for (name, target) in [
            ("base.qcow2", Target::Below),
            ("./a/../b.raw", Target::Below),
            ("sub/x:y", Target::Below),
            ("../base", Target::Outside),
            ("a/../../b", Target::Outside),
            ("/etc/shadow", Target::Absolute),
            ("file:/etc/shadow", Target::Absolute),
            ("file:../x", Target::Outside),
            ("file:json:{}", Target::Below),
            ("json:{\"driver\":\"file\"}", Target::Json),
            ("nbd://host/x", protocol("nbd")),
            ("https://host/x", protocol("https")),
            ("fat:rw:/srv", protocol("fat")),
            ("host_device:/dev/sda", protocol("host_device")),
            ("", Target::Empty),
            ("file:", Target::Empty),
            (":odd", Target::Below),
        ] {
            assert_eq!(Target::of(&name.into()), target, "{name}");
        }
    }
}
