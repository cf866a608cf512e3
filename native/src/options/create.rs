//! The options of `create` and `convert`, `-o key=value,...`: from words to a [`NewImage`].

use std::fmt::Write as _;

use std::time::Duration;

use qcowkit_core::codec::CompressionType;
use qcowkit_core::crypto::{CipherAlgorithm, CipherMode, HashAlgorithm, VectorGenerator};
use qcowkit_core::image::{CreateOptions, LayerFormat, Preallocation};

use super::list::{OptionList, boolean, number, size};
use crate::create::{NewFormat, NewImage};
use crate::keys::LuksOptions;

/// How the value of an option is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Size,
    Number,
    Boolean,
}

/// An option: name, kind, what it is, and whether it is supported.
struct Known {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    supported: bool,
    /// The format that has it: `Some(true)` qcow2 alone, `Some(false)` raw alone, `None` both.
    qcow2: Option<bool>,
    /// Its place in the line that `create` prints.
    place: u8,
}

const fn known(name: &'static str, kind: Kind, place: u8, help: &'static str) -> Known {
    Known { name, kind, help, supported: true, qcow2: Some(true), place }
}

const fn refused(name: &'static str, kind: Kind, place: u8, help: &'static str) -> Known {
    Known { supported: false, ..known(name, kind, place, help) }
}

/// By name, as help lists them.
const OPTIONS: &[Known] = &[
    known("backing_file", Kind::Text, 20, "File name of a base image"),
    known("backing_fmt", Kind::Text, 21, "Image format of the base image"),
    known("cluster_size", Kind::Size, 10, "qcow2 cluster size"),
    known("compat", Kind::Text, 19, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    known("compression_type", Kind::Text, 13, "Compression method used for image cluster compression"),
    known("data_file", Kind::Text, 22, "File name of an external data file"),
    known("data_file_raw", Kind::Boolean, 23, "The external data file must stay valid as a raw image"),
    known("encrypt.cipher-alg", Kind::Text, 3, "Name of encryption cipher algorithm"),
    known("encrypt.cipher-mode", Kind::Text, 4, "Name of encryption cipher mode"),
    known("encrypt.format", Kind::Text, 1, "Encrypt the image, format choices: 'aes', 'luks'"),
    known("encrypt.hash-alg", Kind::Text, 7, "Name of encryption hash algorithm"),
    known("encrypt.iter-time", Kind::Number, 8, "Time to spend in PBKDF in milliseconds"),
    known("encrypt.ivgen-alg", Kind::Text, 5, "Name of IV generator algorithm"),
    known("encrypt.ivgen-hash-alg", Kind::Text, 6, "Name of IV generator hash algorithm"),
    known("encrypt.key-secret", Kind::Text, 2, "ID of secret providing qcow AES key or LUKS passphrase"),
    known(
        "encryption",
        Kind::Boolean,
        0,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    known("extended_l2", Kind::Boolean, 11, "Extended L2 tables"),
    Known {
        qcow2: None,
        ..refused("extent_size_hint", Kind::Size, 32, "Extent size hint for the image file, 0 to disable")
    },
    known("lazy_refcounts", Kind::Boolean, 24, "Postpone refcount updates"),
    Known { qcow2: None, ..refused("nocow", Kind::Boolean, 31, "Turn off copy-on-write (valid only on btrfs)") },
    Known {
        qcow2: Some(true),
        ..known("preallocation", Kind::Text, 12, "Preallocation mode (allowed values: off, metadata, falloc, full)")
    },
    Known {
        qcow2: Some(false),
        ..known("preallocation", Kind::Text, 30, "Preallocation mode (allowed values: off, falloc, full)")
    },
    known("refcount_bits", Kind::Number, 25, "Width of a reference count entry in bits"),
    Known { qcow2: None, ..known("size", Kind::Size, 14, "Virtual disk size") },
];

/// Options that the file system below has, not the format: help shows them only with a file name.
const PROTOCOL: [&str; 3] = ["extent_size_hint", "nocow", "preallocation"];

fn options_of(format: LayerFormat) -> impl Iterator<Item = &'static Known> {
    OPTIONS.iter().filter(move |option| option.qcow2.is_none_or(|qcow2| qcow2 == (format == LayerFormat::Qcow2)))
}

/// Whether a qcow2 image has an option of this name when it is made.
pub fn is_known(key: &str) -> bool {
    options_of(LayerFormat::Qcow2).any(|option| option.name == key)
}

/// The text of `-o help`. Without a file name, the options of the file system below are left out, as in qemu-img.
pub fn help(format: LayerFormat, with_file: bool) -> String {
    let name = format_name(format);
    let mut text = if with_file { "Supported options:\n".to_owned() } else { format!("Supported {name} options:\n") };
    for option in options_of(format) {
        let below = PROTOCOL.contains(&option.name) && (format == LayerFormat::Raw || option.name != "preallocation");
        if below && !with_file {
            continue;
        }
        let kind = match option.kind {
            Kind::Text => "str",
            Kind::Size => "size",
            Kind::Number => "num",
            Kind::Boolean => "bool (on/off)",
        };
        let head = format!("{}=<{kind}>", option.name);
        let _ = writeln!(text, "  {head:<22} - {}", option.help);
    }
    if !with_file {
        text.push_str(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n",
        );
    }
    text
}

/// A format as `-f` names it.
pub const fn format_name(format: LayerFormat) -> &'static str {
    match format {
        LayerFormat::Raw => "raw",
        LayerFormat::Qcow2 => "qcow2",
    }
}

/// How guest data of a new image are to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedEncryption {
    /// The volume.
    pub luks: LuksOptions,
    /// The name of its key.
    pub key_secret: Option<String>,
}

/// The options of a new image, checked one by one.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    format: LayerFormat,
    /// Name and value as they are printed; later ones replace earlier ones.
    given: Vec<(&'static Known, String)>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl ImageOptions {
    /// Reads a list for a format.
    ///
    /// # Errors
    /// An option that the format does not have, or a value that it does not take, in QEMU's words; an option that
    /// qcowkit does not support.
    pub fn parse(format: LayerFormat, list: &OptionList) -> Result<Self, String> {
        let mut options = Self { format, given: Vec::new() };
        for (key, value) in &list.entries {
            options.set(key, value)?;
        }
        Ok(options)
    }

    /// Sets one option.
    ///
    /// # Errors
    /// As [`ImageOptions::parse`].
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let Some(option) = options_of(self.format).find(|option| option.name == key) else {
            return Err(format!("Invalid parameter '{key}'"));
        };
        let printed = match option.kind {
            Kind::Text => value.replace(',', ",,"),
            Kind::Size => size(key, value)?.to_string(),
            Kind::Number => number(key, value)?.to_string(),
            Kind::Boolean => {
                boolean(key, value)?;
                value.to_owned()
            }
        };
        let harmless = matches!((key, value), ("nocow" | "encryption", "off"));
        if !option.supported && !harmless {
            return Err(format!("The option '{key}' is not supported by qcowkit"));
        }
        self.given.retain(|(other, _)| other.name != key);
        self.given.push((option, printed));
        Ok(())
    }

    /// The value of an option as it was written.
    pub fn text(&self, key: &str) -> Option<String> {
        self.given.iter().find(|(option, _)| option.name == key).map(|(option, printed)| match option.kind {
            Kind::Text => printed.replace(",,", ","),
            Kind::Size | Kind::Number | Kind::Boolean => printed.clone(),
        })
    }

    /// The virtual size, if it is among the options.
    pub fn size(&self) -> Option<u64> {
        self.text("size").and_then(|text| text.parse().ok())
    }

    /// The line that `create` prints.
    pub fn line(&self, file: &str, virtual_size: u64) -> String {
        const DEFAULTS: [(&str, &str); 5] = [
            ("cluster_size", "65536"),
            ("extended_l2", "off"),
            ("compression_type", "zlib"),
            ("lazy_refcounts", "off"),
            ("refcount_bits", "16"),
        ];
        let size_text = virtual_size.to_string();
        let mut shown: Vec<(u8, &str, &str)> = options_of(self.format)
            .filter_map(|option| {
                let given = self.given.iter().find(|(other, _)| other.name == option.name);
                let value = match given {
                    _ if option.name == "size" => size_text.as_str(),
                    Some((_, value)) => value.as_str(),
                    None => DEFAULTS.iter().find(|(name, _)| *name == option.name)?.1,
                };
                Some((option.place, option.name, value))
            })
            .collect();
        shown.sort_unstable();
        let mut line = format!("Formatting '{file}', fmt={}", format_name(self.format));
        for (_, name, value) in shown {
            let _ = write!(line, " {name}={value}");
        }
        line
    }

    /// What is to be made, with a virtual size.
    ///
    /// # Errors
    /// A value that is none of those an option takes, in QEMU's words.
    pub fn new_image(&self, virtual_size: u64) -> Result<NewImage, String> {
        let preallocation = match self.text("preallocation").as_deref() {
            None | Some("off") => Preallocation::Off,
            Some("metadata") if self.format == LayerFormat::Raw => {
                return Err("Unsupported preallocation mode: metadata".into());
            }
            Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            Some(other) => return Err(refused_value("preallocation", other)),
        };
        let format = match self.format {
            LayerFormat::Raw => NewFormat::Raw(preallocation),
            LayerFormat::Qcow2 => NewFormat::Qcow2(self.qcow2(preallocation)?),
        };
        Ok(NewImage { size: virtual_size, format, durable: true })
    }

    /// How guest data are to be encrypted, if they are.
    ///
    /// # Errors
    /// Words that are not known, in QEMU's words; QEMU's AES of old, which is not made any more.
    pub fn encryption(&self) -> Result<Option<WantedEncryption>, String> {
        let text = |key: &str| self.text(&format!("encrypt.{key}"));
        let on = self.text("encryption").is_some_and(|value| boolean("encryption", &value).unwrap_or(false));
        match (text("format").as_deref(), on) {
            (Some("luks"), false) => {}
            (Some("luks"), true) => return Err("Options encryption and encrypt.format are mutually exclusive".into()),
            (Some("aes"), _) | (None, true) => {
                return Err("AES encryption of qcow2 does not protect: images that have it are read and written, but \
                            none are made; encrypt.format=luks"
                    .into());
            }
            (Some(other), _) => return Err(refused_value("encrypt.format", other)),
            (None, false) if self.given.iter().any(|(option, _)| option.name.starts_with("encrypt.")) => {
                return Err("Parameter 'encrypt.format' is missing".into());
            }
            (None, false) => return Ok(None),
        }
        let mut luks = LuksOptions::default();
        if let Some(name) = text("cipher-alg") {
            luks.spec.algorithm = CipherAlgorithm::from_name(&name).map_err(|_| match name.as_str() {
                "des" | "3des" => format!("Algorithm '{name}' not supported"),
                _ => refused_value("cipher-alg", &name),
            })?;
        }
        if let Some(name) = text("cipher-mode") {
            luks.spec.mode = CipherMode::from_name(&name).map_err(|_| refused_value("cipher-mode", &name))?;
        }
        let hash = |key: &str| {
            let named = text(key).map(|name| HashAlgorithm::from_name(&name).map_err(|_| refused_value(key, &name)));
            Ok::<_, String>(named.transpose()?.unwrap_or(HashAlgorithm::Sha256))
        };
        luks.hash = hash("hash-alg")?;
        let vector_hash = hash("ivgen-hash-alg")?;
        luks.spec.vectors = match text("ivgen-alg").as_deref() {
            None | Some("plain64") => VectorGenerator::Plain64,
            Some("plain") => VectorGenerator::Plain,
            Some("essiv") => VectorGenerator::Essiv(vector_hash),
            Some(other) => return Err(refused_value("ivgen-alg", other)),
        };
        if let Some(milliseconds) = text("iter-time").and_then(|text| text.parse().ok()) {
            luks.iter_time = Duration::from_millis(milliseconds);
        }
        Ok(Some(WantedEncryption { luks, key_secret: text("key-secret") }))
    }

    fn qcow2(&self, preallocation: Preallocation) -> Result<CreateOptions, String> {
        let defaults = CreateOptions::default();
        let on = |key: &str| self.text(key).is_some_and(|value| boolean(key, &value).unwrap_or(false));
        let version = match self.text("compat").as_deref() {
            None | Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(other) => return Err(refused_value("version", other)),
        };
        let compression = match self.text("compression_type").as_deref() {
            None | Some("zlib") => CompressionType::Zlib,
            Some("zstd") => CompressionType::Zstd,
            Some(other) => return Err(refused_value("compression-type", other)),
        };
        let bits = self.text("refcount_bits").map_or(Ok(16), |text| text.parse::<u32>());
        let options = CreateOptions {
            version,
            cluster_size: self.text("cluster_size").and_then(|text| text.parse().ok()).unwrap_or(defaults.cluster_size),
            refcount_bits: bits.unwrap_or(u32::MAX),
            extended_l2: on("extended_l2"),
            lazy_refcounts: on("lazy_refcounts"),
            compression,
            backing_file: self.text("backing_file"),
            backing_format: self.text("backing_fmt"),
            data_file: self.text("data_file"),
            data_file_raw: on("data_file_raw"),
            preallocation,
            encryption: None,
        };
        qemu_words(&options).map_or(Ok(options), |words| Err(words.to_owned()))
    }
}

fn refused_value(key: &str, value: &str) -> String {
    format!("Parameter '{key}' does not accept value '{value}'")
}

/// What QEMU says of options that do not go together; the core would refuse them too.
fn qemu_words(options: &CreateOptions) -> Option<&'static str> {
    let old = options.version < 3;
    let preallocated = options.preallocation != Preallocation::Off;
    [
        (
            !options.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&options.cluster_size),
            "Cluster size must be a power of two between 512 and 2048k",
        ),
        (
            preallocated && options.backing_file.is_some() && !options.extended_l2,
            "Backing file and preallocation can only be used at the same time if extended_l2 is on",
        ),
        (
            options.lazy_refcounts && old,
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            options.extended_l2 && old,
            "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            options.extended_l2 && options.cluster_size < 16 << 10,
            "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
        ),
        (
            !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64,
            "Refcount width must be a power of two and may not exceed 64 bits",
        ),
        (
            old && options.refcount_bits != 16,
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or \
             greater)",
        ),
        (options.data_file_raw && options.data_file.is_none(), "data-file-raw requires data-file"),
        (
            options.data_file.is_some() && old,
            "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
        ),
        (
            options.data_file_raw && options.backing_file.is_some(),
            "Backing file and data-file-raw cannot be used at the same time",
        ),
        (
            options.backing_format.is_some() && options.backing_file.is_none(),
            "Backing format cannot be used without backing file",
        ),
        (
            old && options.compression != CompressionType::Zlib,
            "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or \
             greater)",
        ),
    ]
    .into_iter()
    .find_map(|(wrong, words)| wrong.then_some(words))
}
