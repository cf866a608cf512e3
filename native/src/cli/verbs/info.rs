//! `info`.

use std::collections::BTreeSet;

use qcowkit_core::ErrorKind;
use qcowkit_core::format::Name;

use crate::cli::args::{InfoArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::json::Json;
use crate::cli::output::info as human;
use crate::cli::plan::{Session, Source};
use crate::disk::Disk;
use crate::info::{Child, FileImageInfo, FileInfo, describe, file_info};
use crate::open::{Gate, OpenRequest, format_by_name, relative_to};

/// One layer's facts.
enum Facts {
    Qcow2(Box<FileImageInfo>),
    Raw(FileInfo),
}

/// Shows what an image, or each of its chain, says of itself.
pub(crate) fn run(args: &InfoArgs, session: &mut Session<'_>) -> Outcome {
    let source = args.image.source(session.personality, false)?;
    let facts = if args.backing_chain { chain(source, session)? } else { vec![layer(&source, session)?.0] };
    match args.image.output.output {
        OutputFormat::Json if args.backing_chain => {
            let list = facts.iter().map(json).collect::<Result<_, Failure>>()?;
            Json::List(list).print(session.out)?;
        }
        OutputFormat::Json => json(&facts[0])?.print(session.out)?,
        OutputFormat::Human => {
            let own = session.personality.is_own();
            for (index, facts) in facts.iter().enumerate() {
                if index > 0 {
                    writeln!(session.out)?;
                }
                match facts {
                    Facts::Qcow2(info) => human::image(session.out, info, own)?,
                    Facts::Raw(file) => human::raw(session.out, file, own)?,
                }
            }
        }
    }
    Ok(0)
}

fn layer(source: &Source, session: &Session<'_>) -> Result<(Facts, Disk), Failure> {
    let disk = source.clone().alone().open(session.personality)?;
    let broken = |error| Failure::in_file(source.path.display(), &error);
    let facts = match disk.image() {
        Some(image) => Facts::Qcow2(Box::new(describe(image).map_err(broken)?)),
        None => Facts::Raw(file_info(disk.file()).map_err(|error| broken(error.into()))?),
    };
    Ok((facts, disk))
}

/// The layers from the top down, each opened by itself: a chain that is broken further down still shows its top.
fn chain(mut source: Source, session: &Session<'_>) -> Result<Vec<Facts>, Failure> {
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    let top = source.path.clone();
    let gate = Gate::new(source.request.backing, &top);
    loop {
        let (facts, disk) = layer(&source, session)?;
        let identity = disk.file().identity().map_err(|error| Failure::in_file(top.display(), &error.into()))?;
        if identity.is_some_and(|identity| !seen.insert(identity)) {
            return Err(Failure::new(format!("Backing file '{}' creates an infinite loop.", source.path.display())));
        }
        let next = disk.image().and_then(|image| {
            let header = image.header();
            Some((header.backing_file.clone()?, header.backing_format().cloned()))
        });
        all.push(facts);
        let Some((name, format)) = next else { return Ok(all) };
        source = below(&source, &gate, &name, format.as_ref())?;
    }
}

/// The next layer. Only its header is going to be read, so that probing its format does no harm.
fn below(source: &Source, gate: &Gate, name: &Name, format: Option<&Name>) -> Result<Source, Failure> {
    let failed = |error: qcowkit_core::Error| {
        let hint = match error.kind() {
            ErrorKind::Denied(_) => "; --backing-files=follow opens it, for images that are trusted",
            _ => "",
        };
        Failure::new(format!("{}: {error}{hint}", source.path.display()))
    };
    let path = relative_to(&source.path, name).map_err(failed)?;
    gate.admit(&path, "backing file").map_err(failed)?;
    let format = format.map(|format| format_by_name(&format.to_string_lossy()).map_err(failed)).transpose()?;
    Ok(source.for_file(path, OpenRequest { format, ..source.request.clone() }))
}

fn json(facts: &Facts) -> Result<Json, Failure> {
    Ok(match facts {
        Facts::Qcow2(info) => Json::of(info)?,
        Facts::Raw(file) => {
            let child = Json::of(&Child { name: "file", info: file.clone() })?;
            Json::Object(vec![
                ("children".into(), Json::List(vec![child])),
                ("virtual-size".into(), file.virtual_size.into()),
                ("filename".into(), file.filename.clone().into()),
                ("format".into(), "raw".into()),
                ("actual-size".into(), file.actual_size.into()),
                ("dirty-flag".into(), false.into()),
            ])
        }
    })
}
