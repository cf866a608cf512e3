//! Numbers of things, in words.

use alloc::format;
use alloc::string::String;

/// `1 entry`, `2 entries`: `one` is the name of a single thing.
#[must_use]
pub(crate) fn counted(count: u64, one: &str) -> String {
    match (count, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_of_a_thing_is_told_apart() {
        let told = [(0, "entry"), (1, "entry"), (2, "entry"), (1, "byte"), (3, "byte")].map(|(n, one)| counted(n, one));
        assert_eq!(told, ["0 entries", "1 entry", "2 entries", "1 byte", "3 bytes"]);
    }
}
