//! `--object secret,...`: QEMU's way to give keys a name.

use std::path::Path;

use qcowkit_core::crypto::Secret;

use super::failure::Failure;
use super::options::OptionList;
use super::personality::Personality;
use crate::keys::key_from_file;

/// Keys by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Vec<(String, Secret)>);

impl Secrets {
    /// Reads the objects, and the files that they name.
    ///
    /// # Errors
    /// Objects that are no secrets, in QEMU's words where it has some; a key on the command line, unless a stand-in is
    /// asked for it.
    pub(crate) fn parse(objects: &[String], personality: Personality) -> Result<Self, Failure> {
        let mut secrets = Self::default();
        for object in objects {
            let (id, secret) = parse(object, personality)?;
            if secrets.0.iter().any(|(known, _)| *known == id) {
                return Err(Failure::new(format!(
                    "attempt to add duplicate property '{id}' to object (type 'container')"
                )));
            }
            secrets.0.push((id, secret));
        }
        Ok(secrets)
    }

    /// The secret with a name.
    ///
    /// # Errors
    /// In QEMU's words.
    pub(crate) fn find(&self, id: &str) -> Result<&Secret, String> {
        self.0
            .iter()
            .find(|(known, _)| known == id)
            .map(|(_, secret)| secret)
            .ok_or(format!("No secret with id '{id}'"))
    }
}

fn parse(object: &str, personality: Personality) -> Result<(String, Secret), Failure> {
    let entries = entries(object)?;
    let value = |name: &str| entries.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    match value("qom-type") {
        Some("secret") => {}
        Some(other) => return Err(Failure::usage(format!("--object {other} is not supported: only secret is"))),
        None => return Err(Failure::usage("Parameter 'qom-type' is missing")),
    }
    const KNOWN: [&str; 5] = ["qom-type", "id", "file", "data", "format"];
    if let Some((key, _)) = entries.iter().find(|(key, _)| !KNOWN.contains(&key.as_str())) {
        return Err(match key.as_str() {
            "keyid" | "iv" => Failure::usage("--object secret: encrypted secrets (keyid, iv) are not supported"),
            _ => Failure::usage(format!("Parameter '{key}' is unexpected")),
        });
    }
    let id = value("id").ok_or_else(|| Failure::usage("Parameter 'id' is missing"))?;
    let bytes = match (value("file"), value("data")) {
        (Some(_), Some(_)) => return Err(Failure::new("'file' and 'data' are mutually exclusive")),
        (None, None) => return Err(Failure::new("Must provide 'file' or 'data'")),
        (Some(file), None) => {
            let secret = key_from_file(Path::new(file)).map_err(|error| Failure::new(error.to_string()))?;
            secret.as_bytes().to_vec()
        }
        (None, Some(_)) if personality.is_own() => {
            return Err(Failure::usage(
                "--object secret,data=...: a key on the command line is seen by every user of this machine; give it \
                 with --key-file or --key-env, or with file= instead of data=",
            ));
        }
        (None, Some(data)) => data.as_bytes().to_vec(),
    };
    let bytes = match value("format") {
        None | Some("raw") => bytes,
        Some("base64") => base64(&bytes).ok_or_else(|| Failure::new(format!("Base64 data '{id}' is not valid")))?,
        Some(other) => return Err(Failure::new(format!("Invalid parameter '{other}'"))),
    };
    Ok((id.to_owned(), Secret::new(bytes)))
}

/// `secret,id=NAME,...`, or the same in JSON.
fn entries(object: &str) -> Result<Vec<(String, String)>, Failure> {
    if object.starts_with('{') {
        let parsed: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(object).map_err(|_| Failure::usage("--object: this JSON is no object"))?;
        let text = |(key, value): (String, serde_json::Value)| match value {
            serde_json::Value::String(value) => Ok((key, value)),
            _ => Err(Failure::usage(format!("--object: '{key}' should be a string"))),
        };
        return parsed.into_iter().map(text).collect();
    }
    let (kind, rest) = object.split_once(',').unwrap_or((object, ""));
    let list = OptionList::parse(&[rest]).map_err(|error| Failure::usage(error.to_string()))?;
    let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
    Ok([("qom-type".to_owned(), kind.to_owned())].into_iter().chain(list.entries).collect())
}

/// Decodes base64 (RFC 4648, section 4); white space is passed over.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters: Vec<u8> = text.iter().copied().filter(|letter| !letter.is_ascii_whitespace()).collect();
    let padding = letters.iter().rev().take_while(|&&letter| letter == b'=').count();
    if padding > 2 || !letters.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(letters.len() / 4 * 3);
    for group in letters[..letters.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for letter in group {
            let value = LETTERS.iter().position(|known| known == letter)?;
            bits = bits << 6 | value as u32;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(object: &str) -> Result<Vec<u8>, String> {
        let secrets = Secrets::parse(&[object.to_owned()], Personality::QemuImg).map_err(|failure| failure.message)?;
        Ok(secrets.find("s")?.as_bytes().to_vec())
    }

    #[test]
    fn objects_are_read_as_qemu_reads_them() {
        assert_eq!(secret("secret,id=s,data=a,,b"), Ok(b"a,b".to_vec()));
        assert_eq!(secret("secret,id=s,format=base64,data=aGVsbG8="), Ok(b"hello".to_vec()));
        assert_eq!(secret("secret,id=s,format=base64,data=aGVsbG8h"), Ok(b"hello!".to_vec()));
        assert_eq!(secret(r#"{"qom-type":"secret","id":"s","data":"x=1,y"}"#), Ok(b"x=1,y".to_vec()));
        for (object, words) in [
            ("secret,data=a", "'id' is missing"),
            ("secret,id=s", "Must provide"),
            ("secret,id=s,data=a,file=b", "mutually exclusive"),
            ("secret,id=s,file=/no/such/file", "key file"),
            ("secret,id=s,data=a,keyid=m,iv=x", "not supported"),
            ("secret,id=s,data=a,colour=red", "'colour' is unexpected"),
            ("secret,id=s,data=a=b,format=base64", "not valid"),
            ("secret,id=t,data=a", "No secret with id 's'"),
            ("tls-creds-x509,id=s", "only secret is"),
        ] {
            let error = secret(object).unwrap_err();
            assert!(error.contains(words), "{object}: {error}");
        }
    }

    #[test]
    fn our_own_command_line_takes_no_keys() {
        let objects = ["secret,id=s,data=hunter2".to_owned()];
        let failure = Secrets::parse(&objects, Personality::Own).unwrap_err();
        assert!(failure.message.contains("--key-file") && !failure.message.contains("hunter2"));
        let twice = ["secret,id=s,data=a".to_owned(), "secret,id=s,data=b".to_owned()];
        assert!(Secrets::parse(&twice, Personality::QemuImg).is_err());
    }
}
