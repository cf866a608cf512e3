//! Option lists as QEMU writes them: `key=value,key=value`, a comma inside a value doubled, `key` alone for `key=on`.

/// A list is not well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidList(pub String);

impl std::fmt::Display for InvalidList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Invalid option list: {}", self.0)
    }
}

/// Key and value pairs in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionList {
    /// The pairs.
    pub entries: Vec<(String, String)>,
}

impl OptionList {
    /// Reads any number of lists, one after the other.
    ///
    /// # Errors
    /// When a list begins or ends with a single comma.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Self, InvalidList> {
        let mut entries = Vec::new();
        for list in lists {
            let list = list.as_ref();
            let trailing = list.bytes().rev().take_while(|&b| b == b',').count();
            if list.starts_with(',') || trailing % 2 == 1 {
                return Err(InvalidList(list.to_owned()));
            }
            entries.extend(split(list).into_iter().map(|entry| pair(&entry)));
        }
        // A template stands for all classes, whatever the order in which it and single ones are given.
        entries.sort_by_key(|(key, _)| key != "overlap-check" && key != "overlap-check.template");
        Ok(Self { entries })
    }

    /// Whether help was asked for.
    #[must_use]
    pub fn wants_help(&self) -> bool {
        self.entries.iter().any(|(key, value)| (key == "help" || key == "?") && value == "on")
    }
}

/// Splits at single commas; two commas stand for one.
fn split(list: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != ',' {
            part.push(letter);
        } else if letters.next_if_eq(&',').is_some() {
            part.push(',');
        } else {
            parts.push(std::mem::take(&mut part));
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

fn pair(entry: &str) -> (String, String) {
    match entry.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        // `noNAME` for `NAME=off` is QEMU's old short form.
        None => match entry.strip_prefix("no").filter(|rest| !rest.is_empty()) {
            Some(rest) => (rest.to_owned(), "off".to_owned()),
            None => (entry.to_owned(), "on".to_owned()),
        },
    }
}

/// Reads QEMU's booleans.
///
/// # Errors
/// With QEMU's words.
pub fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

/// Reads a size option.
///
/// # Errors
/// With QEMU's words.
pub fn size(key: &str, value: &str) -> Result<u64, String> {
    super::size::parse(value).map_err(|error| match error {
        super::size::SizeError::OutOfRange => format!("Value '{value}' is out of range for parameter '{key}'"),
        super::size::SizeError::NotANumber => format!(
            "Parameter '{key}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        ),
    })
}

/// Reads a plain number, decimal, octal (`010`) or hexadecimal.
///
/// # Errors
/// With QEMU's words.
pub fn number(key: &str, value: &str) -> Result<u64, String> {
    c_number(value).ok_or_else(|| format!("Parameter '{key}' expects a number"))
}

/// A number as C's `strtol` with base 0 reads it, with nothing after it.
#[must_use]
pub fn c_number(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+'));
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(&text[1..], 8).ok();
    }
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &str) -> Vec<(String, String)> {
        OptionList::parse(&[list]).unwrap().entries
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn lists_are_read_as_qemu_reads_them() {
        assert_eq!(entries("a=1,b=2"), owned(&[("a", "1"), ("b", "2")]));
        assert_eq!(entries("a=1,,2,b"), owned(&[("a", "1,2"), ("b", "on")]));
        assert_eq!(entries("lazy_refcounts,nocow"), owned(&[("lazy_refcounts", "on"), ("cow", "off")]));
        assert_eq!(entries("a=b=c"), owned(&[("a", "b=c")]));
        assert_eq!(entries("a=1,,"), owned(&[("a", "1,")]));
        assert_eq!(entries(""), owned(&[]));
        for list in [",,", ",a=1", "a=1,", "a=1,,,"] {
            assert!(OptionList::parse(&[list]).is_err(), "{list}");
        }
    }

    #[test]
    fn lists_follow_each_other_and_help_is_seen() {
        let list = OptionList::parse(&["a=1,a=2", "a=3"]).unwrap();
        assert_eq!(list.entries, owned(&[("a", "1"), ("a", "2"), ("a", "3")]));
        assert!(OptionList::parse(&["a=1,help"]).unwrap().wants_help());
        assert!(OptionList::parse(&["?"]).unwrap().wants_help());
        assert!(!OptionList::parse(&["help=off"]).unwrap().wants_help());
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        assert_eq!(c_number("16"), Some(16));
        assert_eq!(c_number("0x10"), Some(16));
        assert_eq!(c_number("010"), Some(8));
        assert_eq!(c_number("0"), Some(0));
        for text in ["", "08", "1x", "-1", "0x", "++1", "0x+1", "1.5"] {
            assert_eq!(c_number(text), None, "{text}");
        }
    }
}
