//! `rebase`.

use std::ffi::OsStr;
use std::io::Write;
use std::ops::ControlFlow;

use qcowkit_core::Error;
use qcowkit_core::format::Name;
use qcowkit_core::image::{LayerFormat, NewBacking};

use super::written_files;
use crate::cli::args::{ChangeArgs, OpenArgs, RebaseArgs};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::plan::{Session, Source, one_file, only_writeback};
use crate::cli::progress::Progress;
use crate::disk::Disk;
use crate::file::{FileIdentity, FileStorage};
use crate::open::{format_by_name, lock_request, relative_to};

/// Puts an image on another backing file.
pub(crate) fn run(args: &RebaseArgs, session: &mut Session<'_>) -> Outcome {
    let plan = Plan::new(args, session)?;
    let mut disk = plan.image.open(session.personality)?;
    let Some(image) = disk.image_mut() else { return Err(plan.unchanged("Operation not supported")) };
    if args.force_share {
        // Only what is read goes without locks.
        let locked = image.storage().lock(lock_request(LayerFormat::Qcow2, true));
        locked.map_err(|error| plan.image.failure(error.into(), session.personality))?;
    }
    written_files(image, &[0]).for_each(|file| file.set_barriers(plan.durable));
    if !plan.name.is_empty() && plan.format.is_none() {
        return Err(plan.unchanged("backing format must be specified"));
    }
    let format = plan.format.map(crate::cli::create_options::format_name).filter(|_| !plan.name.is_empty());
    if args.backing_unsafe {
        // No bytes are compared, so that nothing takes time.
        let mut progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
        progress.step(0, 1);
        let done = image.set_backing(&plan.name, format);
        progress.finish(done.is_ok());
        return done.map(|()| 0).map_err(|error| plan.unchanged(error));
    }
    let new = plan.new_backing(args, &disk, session)?;
    let new = NewBacking { format: format.map(str::to_owned), ..new };
    let Some(image) = disk.image_mut() else { return Err(plan.unchanged("Operation not supported")) };
    if image.header().header.snapshot_count > 0 {
        let name = session.personality.name();
        writeln!(
            std::io::stderr(),
            "{name}: warning: the image has internal snapshots; what they leave to the backing file comes from the new one"
        )?;
    }
    let mut progress = Progress::new(session.personality, args.progress, args.quiet, session.out);
    let done = image.rebase(new, args.compress, &mut |done, total| {
        progress.step(done, total);
        ControlFlow::Continue(())
    });
    progress.finish(done.is_ok());
    done.map(|_| 0).map_err(|error| plan.unchanged(error))
}

/// The arguments, checked.
struct Plan<'a> {
    file: &'a OsStr,
    image: Source,
    /// The name for the header; empty for no backing file.
    name: String,
    format: Option<LayerFormat>,
    durable: bool,
}

impl<'a> Plan<'a> {
    fn new(args: &'a RebaseArgs, session: &Session<'_>) -> Result<Self, Failure> {
        let file = one_file(&args.files)?;
        if args.backing.is_none() && !args.backing_unsafe {
            return Err(Failure::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
        }
        let durable = super::durable(args.cache.as_deref(), "cache")?;
        only_writeback(args.backing_cache.as_deref(), "source")?;
        let format = match &args.backing_format {
            None => None,
            Some(name) => {
                Some(format_by_name(name).map_err(|_| Failure::new(format!("Invalid format name: '{name}'")))?)
            }
        };
        let mut image = args.change.open().source(session.personality, file, args.format.as_deref(), true)?;
        // The name alone changes: what it names may be gone.
        image.request.force_share = args.force_share;
        let image = if args.backing_unsafe { image.alone() } else { image.for_data(session.personality) };
        let name = args.backing.clone().unwrap_or_default();
        Ok(Self { file, image, name, format, durable })
    }

    /// The new backing file, opened.
    fn new_backing(
        &self,
        args: &RebaseArgs,
        disk: &Disk,
        session: &Session<'_>,
    ) -> Result<NewBacking<FileStorage>, Failure> {
        if self.name.is_empty() {
            return Ok(NewBacking::none());
        }
        let failed = |text: &str| Failure::new(format!("Could not open new backing file '{}': {text}", self.name));
        let path = relative_to(&self.image.path, &Name::new(self.name.as_bytes()))
            .map_err(|error| failed(&error.to_string()))?;
        let change = ChangeArgs { image_opts: false, data_file: None, ..args.change.clone() };
        let open = OpenArgs { force_share: args.force_share, change };
        let mut source = open.source(session.personality, path.as_os_str(), None, false)?;
        source.request.format = self.format;
        let doubled = format!("Could not open '{}': ", path.display());
        let opened = source
            .for_data(session.personality)
            .open(session.personality)
            .map_err(|failure| failed(failure.message.strip_prefix(&doubled).unwrap_or(&failure.message)))?;
        let chain = opened.layers();
        let identities = identities(&opened).map_err(|error| failed(&error.to_string()))?;
        let present = self::identities(disk).map_err(|error| failed(&error.to_string()))?;
        if present.first().is_some_and(|top| top.is_some() && identities.contains(top)) {
            return Err(failed("its chain leads back to the image itself"));
        }
        // The same file, taken for the same format, further down in the present chain.
        let format = chain.first().map(|layer| layer.format());
        let layers = disk.layers();
        let shared = (1..layers.len()).find(|&depth| {
            let same = present[depth].is_some() && Some(&present[depth]) == identities.first();
            same && Some(layers[depth].format()) == format
        });
        drop((chain, layers));
        Ok(NewBacking {
            name: self.name.clone(),
            format: None,
            layer: Some(opened.into_layer()),
            shared_depth: shared.and_then(|depth| u32::try_from(depth).ok()),
        })
    }

    fn unchanged(&self, why: impl std::fmt::Display) -> Failure {
        match self.name.as_str() {
            "" => Failure::new(format!("{}: could not take away the backing file: {why}", self.file.display())),
            name => Failure::new(format!("Could not change the backing file to '{name}': {why}")),
        }
    }
}

/// What each file of a chain is.
fn identities(disk: &Disk) -> Result<Vec<Option<FileIdentity>>, Error> {
    disk.layers().into_iter().map(|layer| Ok(layer.file().identity()?)).collect()
}
