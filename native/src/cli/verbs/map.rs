//! `map`.

use std::io::{self, Write};

use crate::cli::args::{MapArgs, OutputFormat};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::plan::{Session, size_argument};
use crate::cli::terminal::one_line;
use crate::status::{Status, Statuses};

/// Shows which parts of a disk hold data, and where.
pub(crate) fn run(args: &MapArgs, session: &mut Session<'_>) -> Outcome {
    let source = args.image.source(session.personality, false)?;
    let source = source.of_snapshot(args.snapshot.as_deref())?;
    let start = args.start_offset.as_deref().map_or(Ok(0), |text| size_argument(text, "start offset"))?;
    let length = args.max_length.as_deref().map(|text| size_argument(text, "max length")).transpose()?;
    let mut disk = source.open(session.personality)?;
    let names: Vec<String> = disk.layers().iter().map(|layer| layer.data().path().display().to_string()).collect();
    let end = length.map_or(disk.virtual_size(), |length| start.saturating_add(length)).min(disk.virtual_size());
    let mut statuses = Statuses::new(&mut disk);
    let mut at = start;
    let mut printer = Printer {
        format: args.image.output.output,
        names,
        out: session.out,
        begun: false,
        own: session.personality.is_own(),
    };
    printer.begin()?;
    while at < end {
        let run =
            statuses.next_merged(at, end - at).map_err(|error| Failure::in_file(source.path.display(), &error))?;
        printer.run(&run)?;
        at += run.length;
    }
    printer.finish(start)?;
    Ok(0)
}

struct Printer<'a> {
    format: OutputFormat,
    /// The files with guest data, by depth.
    names: Vec<String>,
    out: &'a mut dyn Write,
    begun: bool,
    /// Also what cannot be read at a place in the file is listed.
    own: bool,
}

impl Printer<'_> {
    fn begin(&mut self) -> io::Result<()> {
        match self.format {
            OutputFormat::Human => writeln!(self.out, "{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to"),
            OutputFormat::Json => write!(self.out, "["),
        }
    }

    fn run(&mut self, run: &Status) -> Result<(), Failure> {
        match self.format {
            OutputFormat::Json => Ok(self.object(run)?),
            OutputFormat::Human if !run.data || run.zero => Ok(()),
            OutputFormat::Human => {
                let name = self.names.get(run.depth as usize).map_or("", String::as_str);
                let name = one_line(name, self.own);
                let Some(offset) = run.offset else {
                    if self.own {
                        let what = if run.compressed { "compressed" } else { "encrypted" };
                        writeln!(self.out, "{}{}{what:<16}{name}", Hex(run.start), Hex(run.length))?;
                        return Ok(());
                    }
                    return Err(Failure::new("File contains external, encrypted or compressed clusters."));
                };
                writeln!(self.out, "{}{}{}{name}", Hex(run.start), Hex(run.length), Hex(offset))?;
                Ok(())
            }
        }
    }

    fn object(&mut self, run: &Status) -> io::Result<()> {
        let separator = if self.begun { ",\n" } else { "" };
        self.begun = true;
        let Status { start, length, depth, present, zero, data, compressed, offset } = run;
        write!(
            self.out,
            "{separator}{{ \"start\": {start}, \"length\": {length}, \"depth\": {depth}, \"present\": {present}, \
             \"zero\": {zero}, \"data\": {data}, \"compressed\": {compressed}"
        )?;
        if let Some(offset) = offset {
            write!(self.out, ", \"offset\": {offset}")?;
        }
        write!(self.out, "}}")
    }

    fn finish(&mut self, start: u64) -> io::Result<()> {
        if self.format == OutputFormat::Human {
            return Ok(());
        }
        if !self.begun {
            // qemu-img ends even an empty list with one run.
            let (depth, length) = (0, 0);
            let (present, zero, data, compressed, offset) = (false, false, false, false, None);
            self.object(&Status { start, length, depth, present, zero, data, compressed, offset })?;
        }
        writeln!(self.out, "]")
    }
}

/// C's `%#-16x`: zero has no prefix.
struct Hex(u64);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => write!(f, "{:<16}", 0),
            value => write!(f, "{value:<#16x}"),
        }
    }
}
