//! JSON as QEMU prints it: four spaces, `[` and `]` of an empty list on lines of their own, all but ASCII escaped.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use serde_json::Value;

/// A value whose members keep the order they were given in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Number(i128),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Json>),
    /// Members in order.
    Object(Vec<(String, Json)>),
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<u64> for Json {
    fn from(value: u64) -> Self {
        Self::Number(value.into())
    }
}
impl From<u32> for Json {
    fn from(value: u32) -> Self {
        Self::Number(value.into())
    }
}
impl From<i64> for Json {
    fn from(value: i64) -> Self {
        Self::Number(value.into())
    }
}
impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}
impl From<String> for Json {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}
impl From<Vec<Json>> for Json {
    fn from(value: Vec<Json>) -> Self {
        Self::List(value)
    }
}

/// QEMU sorts the members of an object by a hash of their names; this is that order, of the names that occur here.
const ORDER: &[&str] = &[
    "icount",
    "vm-clock-nsec",
    "flags",
    "image-end-offset",
    "compressed-clusters",
    "total-clusters",
    "corruptions",
    "corruptions-fixed",
    "check-errors",
    "leaks",
    "leaks-fixed",
    "allocated-clusters",
    "ivgen-alg",
    "detached-header",
    "hash-alg",
    "cipher-alg",
    "uuid",
    "ivgen-hash-alg",
    "name",
    "info",
    "children",
    "backing-filename-format",
    "snapshots",
    "virtual-size",
    "filename",
    "cluster-size",
    "format",
    "fragmented-clusters",
    "cipher-mode",
    "slots",
    "payload-offset",
    "master-key-iters",
    "actual-size",
    "format-specific",
    "full-backing-filename",
    "encrypted",
    "backing-filename",
    "dirty-flag",
    "date-sec",
    "date-nsec",
    "vm-clock-sec",
    "id",
    "vm-state-size",
    "granularity",
    "type",
    "data",
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "data-file",
    "encrypt",
    "data-file-raw",
    "corrupt",
    "extended-l2",
    "active",
    "iters",
    "key-offset",
    "stripes",
];

impl From<Value> for Json {
    /// Members come in QEMU's order.
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(
                number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from)).unwrap_or_default(),
            ),
            Value::String(text) => Self::String(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Object(members) => {
                let mut members: Vec<(String, Self)> =
                    members.into_iter().map(|(name, value)| (name, Self::from(value))).collect();
                members.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(usize::MAX));
                Self::Object(members)
            }
        }
    }
}

impl Json {
    /// A report as QEMU would print it.
    ///
    /// # Errors
    /// When the report cannot be expressed, which plain values always can.
    pub(crate) fn of(report: &impl Serialize) -> io::Result<Self> {
        Ok(serde_json::to_value(report)?.into())
    }

    /// Prints the value over several lines, with a line end after it.
    ///
    /// # Errors
    /// When the output fails.
    pub(crate) fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut text = String::new();
        self.pretty(&mut text, 0);
        text.push('\n');
        out.write_all(text.as_bytes())
    }

    fn pretty(&self, text: &mut String, depth: usize) {
        match self {
            Self::Null => text.push_str("null"),
            Self::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => {
                let _ = write!(text, "{value}");
            }
            Self::String(value) => push_quoted(text, value),
            Self::List(items) => {
                text.push('[');
                for (index, item) in items.iter().enumerate() {
                    text.push_str(if index == 0 { "\n" } else { ",\n" });
                    indent(text, depth + 1);
                    item.pretty(text, depth + 1);
                }
                text.push('\n');
                indent(text, depth);
                text.push(']');
            }
            Self::Object(members) => {
                text.push('{');
                for (index, (name, value)) in members.iter().enumerate() {
                    text.push_str(if index == 0 { "\n" } else { ",\n" });
                    indent(text, depth + 1);
                    let _ = write!(text, "\"{name}\": ");
                    value.pretty(text, depth + 1);
                }
                text.push('\n');
                indent(text, depth);
                text.push('}');
            }
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    for _ in 0..depth {
        text.push_str("    ");
    }
}

/// Appends `value` in quotes, escaped to ASCII.
pub(crate) fn push_quoted(text: &mut String, value: &str) {
    text.push('"');
    for letter in value.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(letter),
            _ => {
                let mut units = [0; 2];
                for unit in letter.encode_utf16(&mut units) {
                    let _ = write!(text, "\\u{unit:04X}");
                }
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_qemus() {
        let value = Json::Object(vec![
            ("children".into(), Json::List(vec![])),
            ("name".into(), "a".into()),
            ("data".into(), Json::Object(vec![])),
            ("list".into(), Json::List(vec![1u64.into(), true.into()])),
        ]);
        let mut out = Vec::new();
        value.print(&mut out).unwrap();
        let expected = "{\n    \"children\": [\n    ],\n    \"name\": \"a\",\n    \"data\": {\n    },\n    \"list\": [\n        \
                        1,\n        true\n    ]\n}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn texts_are_escaped_to_ascii() {
        let mut text = String::new();
        push_quoted(&mut text, "nü \"q\\\u{1}\t\u{7f}😀\u{fffd}.raw");
        assert_eq!(text, r#""n\u00FC \"q\\\u0001\t\u007F\uD83D\uDE00\uFFFD.raw""#);
    }
}
