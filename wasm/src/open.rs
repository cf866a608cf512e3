//! How images are made and opened: options, and the files that images name.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::{Function, Object};
use qcowkit_core::codec::CompressionType;
use qcowkit_core::crypto::Secret;
use qcowkit_core::image::{
    CreateOptions, DetectZeroes, Found, LayerFormat, OpenOptions, Opener, Preallocation, Reference, Role,
};
use qcowkit_core::metadata::{AllocationPolicy, DiscardPolicy, RetainedOp, Unref};
use qcowkit_core::{Error, ErrorKind, Structure};
use wasm_bindgen::prelude::*;

use crate::error;
use crate::options::{Options, Thrown, bytes, invalid, set};
use crate::parts;
use crate::source::Base;
use crate::store::{Edits, MAX_EDIT_BYTES, Store, store};

/// Rounds of key derivation that an image may ask for, unless told otherwise: some ten seconds here.
const KEY_ITERATIONS: u32 = 20_000_000;

pub(crate) const UNREF: [(&str, Unref); 3] =
    [("always", Unref::Always), ("retain_unshared", Unref::RetainUnshared), ("retain_qemu", Unref::RetainQemu)];
pub(crate) const RETAINED_OP: [(&str, RetainedOp); 3] =
    [("punch", RetainedOp::Punch), ("zero_range", RetainedOp::ZeroRange), ("none", RetainedOp::None)];
pub(crate) const DETECT_ZEROES: [(&str, DetectZeroes); 3] =
    [("off", DetectZeroes::Off), ("on", DetectZeroes::On), ("unmap", DetectZeroes::Unmap)];
pub(crate) const ALLOCATION: [(&str, AllocationPolicy); 3] =
    [("qemu", AllocationPolicy::Qemu), ("fill-holes", AllocationPolicy::FillHoles), ("near", AllocationPolicy::Near)];
pub(crate) const PREALLOCATION: [(&str, Preallocation); 4] = [
    ("off", Preallocation::Off),
    ("metadata", Preallocation::Metadata),
    ("falloc", Preallocation::Falloc),
    ("full", Preallocation::Full),
];
const FORMATS: [(&str, LayerFormat); 2] = [("qcow2", LayerFormat::Qcow2), ("raw", LayerFormat::Raw)];

/// How an image was opened, to open it again.
pub(crate) struct Setup {
    pub(crate) options: OpenOptions,
    pub(crate) tolerant: bool,
    pub(crate) identity: Option<String>,
    pub(crate) max_edit_bytes: u64,
    pub(crate) files: Files,
}

impl Setup {
    /// Reads what `create` and `open` have in common.
    pub(crate) fn read(given: &mut Options<'_>) -> Thrown<Self> {
        let tolerant = given.flag("tolerant")?.unwrap_or(false);
        let mut options =
            OpenOptions { read_only: given.flag("read_only")?.unwrap_or(false), ..OpenOptions::default() };
        options.ignore_missing_files = given.flag("ignore_missing_files")?.unwrap_or(tolerant);
        policy(given, &mut options)?;
        options.detect_zeroes = given.choice("detect_zeroes", &DETECT_ZEROES)?.unwrap_or_default();
        options.metadata.allocation = given.choice("allocation", &ALLOCATION)?.unwrap_or_default();
        // Memory is dearer here than on a server.
        options.metadata.cache_bytes = 8 << 20;
        parts::on_demand(&mut options, given.secret("key")?.map(Secret::new));
        options.max_key_iterations = given.small("max_key_iterations")?.unwrap_or(KEY_ITERATIONS);
        let max_edit_bytes = given.number("max_edit_bytes")?.unwrap_or(MAX_EDIT_BYTES);
        let files = Files { resolver: given.function("resolver")?, found: Rc::default(), max_edit_bytes };
        Ok(Self { options, tolerant, identity: given.text("identity")?, max_edit_bytes, files })
    }
}

/// The options of QEMU that say what discards do.
pub(crate) fn policy(given: &mut Options<'_>, options: &mut OpenOptions) -> Thrown<()> {
    let usual = DiscardPolicy::default();
    options.discard = given.flag("discard")?.unwrap_or(true);
    options.policy.unref = given.choice("unref", &UNREF)?.unwrap_or(usual.unref);
    options.policy.retained_op = given.choice("retained_op", &RETAINED_OP)?.unwrap_or(usual.retained_op);
    options.policy.pass.request = given.flag("pass_discard_request")?.unwrap_or(usual.pass.request);
    options.policy.pass.snapshot = given.flag("pass_discard_snapshot")?.unwrap_or(usual.pass.snapshot);
    options.policy.pass.other = given.flag("pass_discard_other")?.unwrap_or(usual.pass.other);
    options.metadata.pass_discard_other = options.policy.pass.other;
    Ok(())
}

/// What a new image is like.
pub(crate) fn new_image(given: &mut Options<'_>) -> Thrown<CreateOptions> {
    let usual = CreateOptions::default();
    Ok(CreateOptions {
        version: given.choice("compat", &[("0.10", 2), ("1.1", 3)])?.unwrap_or(usual.version),
        cluster_size: given.number("cluster_size")?.unwrap_or(usual.cluster_size),
        refcount_bits: given.small("refcount_bits")?.unwrap_or(usual.refcount_bits),
        extended_l2: given.flag("extended_l2")?.unwrap_or(usual.extended_l2),
        lazy_refcounts: given.flag("lazy_refcounts")?.unwrap_or(usual.lazy_refcounts),
        compression: given
            .choice("compression_type", &[("zlib", CompressionType::Zlib), ("zstd", CompressionType::Zstd)])?
            .unwrap_or(usual.compression),
        backing_file: given.text("backing_file")?,
        backing_format: given.choice("backing_format", &FORMATS)?.map(|format| name_of(format).to_owned()),
        preallocation: given.choice("preallocation", &PREALLOCATION)?.unwrap_or(usual.preallocation),
        ..usual
    })
}

/// The files that the images of a chain name, as the caller's resolver finds them; each is asked for once.
#[derive(Clone)]
pub(crate) struct Files {
    resolver: Option<Function>,
    found: Rc<RefCell<Vec<Known>>>,
    max_edit_bytes: u64,
}

struct Known {
    role: Role,
    name: String,
    depth: u32,
    edits: Rc<Edits>,
    format: LayerFormat,
    identity: Option<String>,
}

impl Files {
    /// The layers below an image, in order, with their formats.
    pub(crate) fn layers(&self) -> Vec<(Store, LayerFormat)> {
        let found = self.found.borrow();
        // They were found from the top down.
        let layers = found.iter().filter(|known| known.role == Role::Backing);
        layers.map(|known| (known.again(), known.format)).collect()
    }

    /// The image's own data file.
    pub(crate) fn data_file(&self) -> Option<Store> {
        self.data_edits().map(|edits| store(&edits))
    }

    /// The edits of the image's own data file: the one file besides the image that is ever written.
    pub(crate) fn data_edits(&self) -> Option<Rc<Edits>> {
        let found = self.found.borrow();
        let own = found.iter().find(|known| known.role == Role::DataFile && known.depth == 0);
        own.map(|known| Rc::clone(&known.edits))
    }

    /// The same files for another image, whose edits of the data file are its own from now on.
    pub(crate) fn fork(&self) -> Result<Self, Error> {
        let found = self.found.borrow();
        let copies = found.iter().map(|known| {
            let edits = if known.role == Role::DataFile { known.edits.fork()? } else { Rc::clone(&known.edits) };
            Ok(Known { edits, name: known.name.clone(), identity: known.identity.clone(), ..*known })
        });
        let copies = copies.collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { resolver: self.resolver.clone(), found: Rc::new(RefCell::new(copies)), ..*self })
    }

    /// Asks the caller.
    fn resolve(&self, reference: &Reference<'_>, name: &str) -> Result<Known, Error> {
        let denied = |why: &str| {
            let (what, structure) = match reference.role {
                Role::Backing => ("backing file", Structure::BackingFile),
                Role::DataFile => ("data file", Structure::DataFile),
            };
            let message = format!("the image names the {what} '{name}'{why}");
            Error::new(ErrorKind::Denied(message)).in_structure(structure).at_depth(reference.depth)
        };
        let resolver = self.resolver.as_ref().ok_or_else(|| denied(""))?;
        let claimed = reference.format.map(|format| format.to_string_lossy());
        let asked = asked(reference, name, claimed.as_deref());
        // What the resolver throws comes out of the call as it is.
        let layer = resolver.call1(&JsValue::UNDEFINED, &asked).map_err(|thrown| {
            error::interrupt(thrown);
            denied("; the resolver failed")
        })?;
        if layer.is_undefined() || layer.is_null() {
            return Err(denied(", which the resolver does not open"));
        }
        self.take_in(reference, name, claimed.as_deref(), &layer).map_err(|thrown| {
            error::interrupt(thrown);
            denied("; what the resolver gave cannot be used")
        })
    }

    fn take_in(&self, reference: &Reference<'_>, name: &str, claimed: Option<&str>, layer: &JsValue) -> Thrown<Known> {
        let mut given = Options::new(layer)?;
        let input = given.value("input")?.ok_or_else(|| invalid("the resolver gave no input"))?;
        let identity = given.text("identity")?;
        let stated = given.choice("format", &FORMATS)?;
        given.finish()?;
        let format = match (reference.role, stated, claimed) {
            // Of a data file the format does not matter: it is raw.
            (Role::DataFile, ..) => LayerFormat::Raw,
            (Role::Backing, Some(format), _) => format,
            (Role::Backing, None, Some(claimed)) => FORMATS
                .iter()
                .find(|(known, _)| *known == claimed)
                .map(|(_, format)| *format)
                .ok_or_else(|| error::thrown(&Error::unsupported(format!("backing files of format '{claimed}'"))))?,
            (Role::Backing, None, None) => {
                return Err(invalid(format!(
                    "neither the image nor the resolver tells the format of the backing file '{name}'; a guess from its \
                     bytes would let a guest choose it"
                )));
            }
        };
        let edits = Edits::new(Base::of(&input)?, self.max_edit_bytes);
        let edits = error::outcome(edits.map_err(Error::from))?;
        Ok(Known { role: reference.role, name: name.to_owned(), depth: reference.depth, edits, format, identity })
    }
}

impl Known {
    fn again(&self) -> Store {
        store(&self.edits)
    }
}

impl Opener<Store> for Files {
    fn open(&mut self, reference: &Reference<'_>) -> Result<Found<Store>, Error> {
        let name = reference.name.to_string_lossy().into_owned();
        let same = |known: &Known| known.role == reference.role && known.depth == reference.depth && known.name == name;
        let known = self.found.borrow().iter().position(same);
        let at = match known {
            Some(at) => at,
            None => {
                let resolved = self.resolve(reference, &name)?;
                let mut found = self.found.borrow_mut();
                found.push(resolved);
                found.len() - 1
            }
        };
        let found = self.found.borrow();
        let known = &found[at];
        Ok(Found { storage: known.again(), format: known.format, identity: known.identity.clone() })
    }
}

/// What the resolver is asked.
fn asked(reference: &Reference<'_>, name: &str, format: Option<&str>) -> Object {
    let asked = Object::new();
    let role = match reference.role {
        Role::Backing => "backing_file",
        Role::DataFile => "data_file",
    };
    set(&asked, "role", &role.into());
    set(&asked, "name", &name.into());
    set(&asked, "format", &format.map_or(JsValue::NULL, JsValue::from));
    set(&asked, "depth", &reference.depth.into());
    set(&asked, "from", &reference.from.map_or(JsValue::NULL, JsValue::from));
    asked
}

fn name_of(format: LayerFormat) -> &'static str {
    match format {
        LayerFormat::Raw => "raw",
        LayerFormat::Qcow2 => "qcow2",
    }
}

/// Two numbers of a call.
pub(crate) fn range(offset: f64, length: f64) -> Thrown<(u64, u64)> {
    Ok((bytes(offset, "offset")?, bytes(length, "length")?))
}
