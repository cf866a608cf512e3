//! JSON as QEMU prints it: four spaces, `[` and `]` of an empty list on lines of their own, all but ASCII escaped.

use std::fmt::Write as _;
use std::io;

/// A value whose members keep the order they were given in.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Number(i128),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Json>),
    /// Members in order.
    Object(Vec<(&'static str, Json)>),
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

impl Json {
    /// Prints the value over several lines, with a line end after it.
    ///
    /// # Errors
    /// When the output fails.
    pub fn print(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let mut text = String::new();
        self.pretty(&mut text, 0);
        text.push('\n');
        out.write_all(text.as_bytes())
    }

    fn pretty(&self, text: &mut String, depth: usize) {
        match self {
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
pub fn push_quoted(text: &mut String, value: &str) {
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
            ("children", Json::List(vec![])),
            ("name", "a".into()),
            ("data", Json::Object(vec![])),
            ("list", Json::List(vec![1u64.into(), true.into()])),
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
