//! `amend`.

use qcowkit_core::crypto::EncryptionMethod;
use qcowkit_core::format::HeaderArea;
use qcowkit_core::image::{AmendOptions, LayerFormat};
use qcowkit_core::{Error, ErrorKind};

use crate::cli::args::AmendArgs;
use crate::cli::create_options::{self, format_name};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::options::{OptionList, boolean, number, size};
use crate::cli::personality::Personality;
use crate::cli::plan::{Session, one_file, target_cache};
use crate::cli::progress::Progress;
use crate::cli::verbs::key_slots::{SlotKeys, SlotRequest};
use crate::open::format_by_name;

/// What can be amended, as help lists it: name, kind, what it is.
const OPTIONS: [(&str, &str, &str); 13] = [
    ("backing_file", "str", "File name of a base image"),
    ("backing_fmt", "str", "Image format of the base image"),
    ("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    ("data_file", "str", "File name of an external data file"),
    ("data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"),
    ("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    ("encrypt.keyslot", "num", "Select a single keyslot to modify explicitly"),
    ("encrypt.new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    ("encrypt.old-secret", "str", "Select all keyslots that match this password"),
    ("encrypt.state", "str", "Select new state of affected keyslots (active/inactive)"),
    ("lazy_refcounts", "bool (on/off)", "Postpone refcount updates"),
    ("refcount_bits", "num", "Width of a reference count entry in bits"),
    ("size", "size", "Virtual disk size"),
];

/// What the options ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Amendments {
    /// What the core changes; the backing file is decided when the image is known.
    options: AmendOptions,
    backing_file: Option<String>,
    backing_format: Option<String>,
    /// Key and value of the `encrypt.` options, without that prefix.
    encryption: Vec<(String, String)>,
}

/// Changes an image in place.
pub(crate) fn run(args: &AmendArgs, session: &mut Session<'_>) -> Outcome {
    let list = OptionList::parse(&args.options).map_err(|error| Failure::new(error.to_string()))?;
    if list.entries.is_empty() {
        return Err(Failure::usage("Must specify options (-o)"));
    }
    if list.wants_help() {
        if let Some(name) = &args.format {
            let format = format_by_name(name).map_err(|_| Failure::new(format!("Unknown file format '{name}'")))?;
            return help(format, session);
        }
        if args.files.is_empty() {
            return help(LayerFormat::Qcow2, session);
        }
    }
    let file = one_file(&args.files).map_err(|failure| Failure::new(failure.message))?;
    let durable = target_cache(args.cache.as_deref())?;
    let wants_help = list.wants_help();
    let source = args.open.open().source(session.personality, file, args.format.as_deref(), !wants_help)?;
    let source = match list.entries.iter().any(|(key, _)| key.starts_with("encrypt.")) {
        true => source.with_prompt(session.personality),
        false => source,
    };
    let mut disk = source.open(session.personality)?;
    if wants_help {
        return help(disk.format(), session);
    }
    disk.file().set_barriers(durable);
    let Some(image) = disk.image_mut() else { return Err(not_for(LayerFormat::Raw)) };
    let failed = |words: String| match session.personality {
        Personality::Own => Failure::new(format!("{}: {words}", file.display())),
        Personality::QemuImg | Personality::QemuIo => Failure::new(words),
    };
    // Words of ours and of the arguments alone.
    let refused = |words: String| Failure::in_lines(&failed(words).message);
    let mut asked = Amendments::parse(&list).map_err(refused)?;
    asked.decide_backing(image.header(), args.force && session.personality.is_own()).map_err(refused)?;
    let slots = match asked.encryption.is_empty() {
        true => None,
        false if image.encryption() != Some(EncryptionMethod::Luks) => {
            return Err(failed(encryption_words(image.header())));
        }
        false => Some(SlotRequest::parse(&asked.encryption, &args.slot_keys).map_err(failed)?),
    };
    asked.options.validate(image.header()).map_err(|error| failed(words(&error)))?;
    if let Some(slots) = slots {
        let (personality, shown) = (session.personality, file.display().to_string());
        let secrets = args.open.keys.secrets(personality)?;
        let keys = SlotKeys { args: &args.slot_keys, secrets: &secrets, personality, image: &shown };
        slots.carry_out(image, &keys, args.force).map_err(failed)?;
    }
    let mut progress = Progress::new(session.personality, args.progress, args.quiet, session.out).in_operations();
    let done = image.amend(&asked.options, &mut |done, total| {
        if done < total {
            progress.step(done, total);
        }
    });
    progress.finish(done.is_ok());
    // Also after a failure, so that dirty bitmaps are not left marked as in use.
    let finished = image.finish();
    done.and(finished).map_err(|error| failed(words(&error)))?;
    Ok(0)
}

fn not_for(format: LayerFormat) -> Failure {
    Failure::new(format!("Format driver '{}' does not support option amendment", format_name(format)))
}

fn help(format: LayerFormat, session: &mut Session<'_>) -> Outcome {
    if format != LayerFormat::Qcow2 {
        return Err(not_for(format));
    }
    writeln!(session.out, "Amend options for 'qcow2':")?;
    for (name, kind, what) in OPTIONS {
        let head = format!("{name}=<{kind}>");
        writeln!(session.out, "  {head:<22} - {what}")?;
    }
    Ok(0)
}

/// An error without the name of its kind: the words say it.
fn words(error: &Error) -> String {
    match error.kind() {
        ErrorKind::InvalidArgument(words) | ErrorKind::Unsupported(words) | ErrorKind::Limit(words) => words.clone(),
        _ => error.to_string(),
    }
}

/// Why the options of an encryption cannot be amended.
fn encryption_words(area: &HeaderArea) -> String {
    match area.header.crypt_method {
        0 => "Can't amend encryption options - encryption not present".into(),
        _ => "Only LUKS encryption can be amended".into(),
    }
}

impl Amendments {
    fn parse(list: &OptionList) -> Result<Self, String> {
        let mut asked = Self::default();
        for (key, value) in &list.entries {
            let Some((name, kind, _)) = OPTIONS.iter().find(|(name, ..)| name == key) else {
                return Err(match create_options::is_known(key) {
                    true => {
                        format!("Invalid parameter '{key}'\nThis option is only supported for image creation")
                    }
                    false => format!("Invalid parameter '{key}'"),
                });
            };
            // Whatever becomes of it, the value must make sense.
            let (truth, quantity) = match *kind {
                "size" => (false, size(key, value)?),
                "num" => (false, number(key, value)?),
                "str" => (false, 0),
                _ => (boolean(key, value)?, 0),
            };
            let options = &mut asked.options;
            match *name {
                "backing_file" => asked.backing_file = Some(value.clone()),
                "backing_fmt" => asked.backing_format = Some(value.clone()),
                "compat" => options.version = Some(version(value)?),
                "data_file" => options.data_file = Some(value.clone()),
                "data_file_raw" => options.data_file_raw = Some(truth),
                "lazy_refcounts" => options.lazy_refcounts = Some(truth),
                "refcount_bits" => options.refcount_bits = Some(u32::try_from(quantity).unwrap_or(u32::MAX)),
                "size" => options.size = Some(quantity),
                _ => asked.encryption.push((key.trim_start_matches("encrypt.").to_owned(), value.clone())),
            }
        }
        Ok(asked)
    }

    /// A backing file that is not the present one is refused, as in QEMU, unless it was forced.
    fn decide_backing(&mut self, area: &HeaderArea, force: bool) -> Result<(), String> {
        let (file, format) = (self.backing_file.take(), self.backing_format.take());
        if file.is_none() && format.is_none() {
            return Ok(());
        }
        let present = area.backing_file.as_ref().map(ToString::to_string);
        let present_format = area.backing_format().map(ToString::to_string);
        if file == present && format == present_format {
            return Ok(());
        }
        if !force {
            return Err("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.".into());
        }
        let file = file.or(present).unwrap_or_default();
        let format = match (format, file.is_empty()) {
            (Some(format), _) => Some(format),
            (None, true) => None,
            (None, false) => present_format,
        };
        self.options.backing = Some((file, format));
        Ok(())
    }
}

fn version(text: &str) -> Result<u32, String> {
    match text {
        "0.10" | "v2" => Ok(2),
        "1.1" | "v3" => Ok(3),
        other => Err(format!("Unknown compatibility level {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qcowkit_core::format::{Extension, Header};

    fn parse(text: &str) -> Result<Amendments, String> {
        Amendments::parse(&OptionList::parse(&[text]).unwrap())
    }

    #[test]
    fn options_are_read_and_others_refused_by_name() {
        let asked =
            parse("compat=v3,refcount_bits=0x20,lazy_refcounts,size=1.5G,data_file=a,,b,data_file_raw=off").unwrap();
        let expected = AmendOptions {
            version: Some(3),
            lazy_refcounts: Some(true),
            refcount_bits: Some(32),
            size: Some(3 << 29),
            data_file: Some("a,b".into()),
            data_file_raw: Some(false),
            backing: None,
        };
        assert_eq!(asked.options, expected);
        assert_eq!(parse("encrypt.state=active").unwrap().encryption, [("state".to_owned(), "active".to_owned())]);
        for (text, words) in [
            ("cluster_size=4k", "only supported for image creation"),
            ("foo=1", "Invalid parameter 'foo'"),
            ("compat=3", "Unknown compatibility level 3"),
            ("lazy_refcounts=perhaps", "'on' or 'off'"),
            ("refcount_bits=many", "expects a number"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_backing_file_stays_unless_forced() {
        let mut area = HeaderArea::new(Header::new(3, 16, 0));
        area.backing_file = Some("base".into());
        area.extensions.push(Extension::BackingFormat("raw".into()));
        let decide = |text: &str, force: bool| {
            let mut asked = parse(text).unwrap();
            asked.decide_backing(&area, force).map(|()| asked.options.backing)
        };
        assert_eq!(decide("backing_file=base,backing_fmt=raw", false), Ok(None));
        assert!(decide("backing_file=base", false).is_err());
        assert!(decide("backing_file=", false).is_err());
        assert_eq!(decide("backing_file=", true), Ok(Some((String::new(), None))));
        assert_eq!(decide("backing_fmt=qcow2", true), Ok(Some(("base".into(), Some("qcow2".into())))));
        assert_eq!(decide("size=1G", false), Ok(None));
    }
}
