//! Which snapshot: an ID or a name, or `snapshot.id=ID,snapshot.name=NAME`, as `qemu-img convert -l` takes it.

use std::ffi::OsStr;

use qcowkit_core::format::Name;
use qcowkit_core::image::SnapshotSelector;

use super::failure::Failure;
use super::options::OptionList;

/// Parses the argument of `-l` and of `--snapshot`.
///
/// # Errors
/// Another key, or a list without either.
pub(crate) fn parse(text: &OsStr) -> Result<SnapshotSelector, Failure> {
    let bytes = text.as_encoded_bytes();
    if !bytes.starts_with(b"snapshot.") {
        return Ok(SnapshotSelector::IdOrName(Name::new(bytes)));
    }
    let wrong = |why: String| Failure::new(format!("Failed in parsing snapshot param '{}': {why}", text.display()));
    let Some(list) = text.to_str() else { return Err(wrong("not UTF-8".into())) };
    let list = OptionList::parse(&[list]).map_err(|error| wrong(error.to_string()))?;
    let (mut id, mut name) = (None, None);
    for (key, value) in &list.entries {
        match key.as_str() {
            "snapshot.id" => id = Some(Name::from(value.as_str())),
            "snapshot.name" => name = Some(Name::from(value.as_str())),
            other => return Err(wrong(format!("Invalid parameter '{other}'"))),
        }
    }
    match (id, name) {
        (Some(id), Some(name)) => Ok(SnapshotSelector::IdAndName { id, name }),
        (Some(id), None) => Ok(SnapshotSelector::Id(id)),
        (None, Some(name)) => Ok(SnapshotSelector::Name(name)),
        (None, None) => Err(wrong("neither snapshot.id nor snapshot.name".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_or_a_list() {
        let parsed = |text: &str| parse(OsStr::new(text)).ok();
        assert_eq!(parsed("a,b=c"), Some(SnapshotSelector::IdOrName("a,b=c".into())));
        assert_eq!(parsed("snapshot.id=3"), Some(SnapshotSelector::Id("3".into())));
        assert_eq!(parsed("snapshot.name=a b"), Some(SnapshotSelector::Name("a b".into())));
        let both = SnapshotSelector::IdAndName { id: "3".into(), name: "n".into() };
        assert_eq!(parsed("snapshot.name=n,snapshot.id=3"), Some(both));
        assert_eq!(parsed("snapshot.foo=1"), None);
        assert_eq!(parsed("snapshot.id=1,foo=1"), None);
    }
}
