//! Keys for the images of a command: those that the arguments name, and those that are asked for at the terminal.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qcowkit_core::crypto::{KeyRequest, KeySource, Keyring, NewVolume, Secret};
use qcowkit_core::image::OpenOptions;

use super::args::KeyArgs;
use super::create_options::ImageOptions;
use super::failure::Failure;
use super::personality::Personality;
use super::secrets::Secrets;
use crate::keys::{key_from_environment, key_from_file};

/// How often a key is asked for before an image is given up.
const PROMPTS: usize = 3;

/// Keys at hand, and whether to ask for more.
#[derive(Debug)]
struct Keys {
    ring: Keyring,
    prompt: bool,
    /// What was typed: the layers of a chain often have the same key.
    typed: Mutex<Vec<Secret>>,
}

impl KeySource for Keys {
    fn key(&self, request: &KeyRequest<'_>) -> qcowkit_core::Result<Option<Secret>> {
        if let Some(secret) = self.ring.key(request)? {
            return Ok(Some(secret));
        }
        if !self.prompt {
            return Ok(None);
        }
        let mut typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        let at_hand = (0..request.attempt)
            .filter(|&attempt| self.ring.key(&KeyRequest { attempt, ..*request }).is_ok_and(|secret| secret.is_some()));
        let tried = request.attempt as usize - at_hand.count();
        if tried >= typed.len() {
            if tried >= PROMPTS {
                return Ok(None);
            }
            let name = request.identity.unwrap_or("the image");
            let Some(secret) = ask(&format!("Key of {name} ({}): ", request.method.name())) else { return Ok(None) };
            typed.push(secret);
        }
        Ok(typed.get(tried).cloned())
    }
}

/// Reads a key from the terminal, without showing it. Nothing where there is no terminal.
fn ask(prompt: &str) -> Option<Secret> {
    let typed = rpassword::prompt_password(prompt).ok()?;
    Some(Secret::new(typed.into_bytes()))
}

/// Whether somebody is there who can be asked.
fn terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

impl KeyArgs {
    /// The keys that the arguments name for all layers.
    ///
    /// # Errors
    /// A key that cannot be had.
    pub(crate) fn ring(&self) -> Result<Keyring, Failure> {
        let mut ring = Keyring::new();
        for file in &self.key_file {
            ring = ring.with(from_file(file)?);
        }
        for name in &self.key_env {
            ring = ring.with(from_environment(name)?);
        }
        Ok(ring)
    }

    /// The keys that have names.
    ///
    /// # Errors
    /// As [`Secrets::parse`].
    pub(crate) fn secrets(&self, personality: Personality) -> Result<Secrets, Failure> {
        Secrets::parse(&self.object, personality)
    }

    /// Adds to the news of a wrong key what it is often about.
    pub(crate) fn hint(&self, failure: Failure) -> Failure {
        let ends_in_newline = |file: &&PathBuf| from_file(file).is_ok_and(|secret| secret.as_bytes().ends_with(b"\n"));
        match self.key_file.iter().find(ends_in_newline) {
            None => failure,
            Some(file) => Failure {
                message: format!(
                    "{}; the key file '{}' ends with a newline, which counts as a part of the key",
                    failure.message,
                    file.display()
                ),
                ..failure
            },
        }
    }

    /// Lets an opening use keys. `prompt` asks for those that are missing, if there is a terminal.
    pub(crate) fn supply(&self, options: &mut OpenOptions, ring: &Keyring, prompt: bool) {
        let prompt = prompt && terminal();
        if let Some(most) = self.max_key_iterations {
            options.max_key_iterations = most;
        }
        options.keys = (prompt || !ring.is_empty()).then(|| {
            let keys = Keys { ring: ring.clone(), prompt, typed: Mutex::default() };
            Arc::new(keys) as Arc<dyn KeySource + Send + Sync>
        });
    }
}

/// The key in a file.
///
/// # Errors
/// It cannot be read.
pub(crate) fn from_file(file: &Path) -> Result<Secret, Failure> {
    key_from_file(file).map_err(|error| Failure::new(plain(&error)))
}

/// The key in an environment variable.
///
/// # Errors
/// It is not set.
pub(crate) fn from_environment(name: &str) -> Result<Secret, Failure> {
    key_from_environment(name).map_err(|error| Failure::new(plain(&error)))
}

/// A key from the one place that was named, if one was.
///
/// # Errors
/// It cannot be had.
pub(crate) fn named(file: Option<&Path>, variable: Option<&str>) -> Result<Option<Secret>, Failure> {
    match (file, variable) {
        (Some(file), _) => from_file(file).map(Some),
        (None, Some(variable)) => from_environment(variable).map(Some),
        (None, None) => Ok(None),
    }
}

/// A new key, typed twice. Nothing where there is no terminal.
///
/// # Errors
/// The second is not the first.
pub(crate) fn ask_new(name: &str) -> Result<Option<Secret>, Failure> {
    if !terminal() {
        return Ok(None);
    }
    let Some(first) = ask(&format!("New key of {name}: ")) else { return Ok(None) };
    match ask("The same again: ") {
        Some(second) if second == first => Ok(Some(first)),
        _ => Err(Failure::new("the two keys are not the same")),
    }
}

/// The LUKS volume that the options of a new image ask for, if they do. Takes a while: the derivation of its key is
/// timed.
///
/// # Errors
/// Options that do not go together, in QEMU's words where it has some; no key.
pub(crate) fn new_volume(
    options: &ImageOptions,
    secrets: &Secrets,
    given: Option<Secret>,
    name: &str,
    personality: Personality,
) -> Result<Option<Arc<NewVolume>>, String> {
    let Some(wanted) = options.encryption()? else { return Ok(None) };
    wanted.luks.validate().map_err(|error| plain(&error))?;
    let secret = match (&wanted.key_secret, given) {
        (Some(id), _) => secrets.find(id)?.clone(),
        (None, Some(secret)) => secret,
        (None, None) if personality.is_own() => {
            let typed = ask_new(name).map_err(|failure| failure.message)?;
            typed.ok_or("a new encrypted image needs a key: --key-file or --key-env give it, or a terminal")?
        }
        (None, None) => return Err("Parameter 'encrypt.key-secret' is required for cipher".into()),
    };
    wanted.luks.make(&secret).map(|volume| Some(Arc::new(volume))).map_err(|error| plain(&error))
}

/// An error without the name of its kind: the words say it.
pub(crate) fn plain(error: &qcowkit_core::Error) -> String {
    use qcowkit_core::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidArgument(words) | ErrorKind::Unsupported(words) | ErrorKind::Limit(words) => words.clone(),
        _ => error.to_string(),
    }
}
