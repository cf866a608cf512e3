//! The commands' names, argument counts and help, as qemu-io has them.

/// One command of the language.
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    /// A second name, or empty.
    pub(crate) short: &'static str,
    /// Fewest arguments after the name.
    pub(crate) min: usize,
    /// Most arguments; `None` for any number.
    pub(crate) max: Option<usize>,
    /// Works without an open image.
    pub(crate) without_image: bool,
    /// What follows the name in help lines.
    pub(crate) args: &'static str,
    /// One line of help.
    pub(crate) line: &'static str,
    /// Options, as `getopt` writes them: a colon after those that take a value.
    pub(crate) options: &'static str,
}

impl Spec {
    /// `name args -- line`.
    pub(crate) fn usage(&self) -> String {
        let gap = if self.args.is_empty() && self.name != "map" { "" } else { " " };
        format!("{}{gap}{} -- {}", self.name, self.args, self.line)
    }
}

macro_rules! spec {
    ($name:literal, $short:literal, $min:literal, $max:expr, $args:literal, $options:literal, $line:literal) => {
        Spec {
            name: $name,
            short: $short,
            min: $min,
            max: $max,
            without_image: false,
            args: $args,
            line: $line,
            options: $options,
        }
    };
    (global $($rest:tt)*) => {
        Spec { without_image: true, ..spec!($($rest)*) }
    };
}

/// All commands, by name.
pub(crate) const COMMANDS: &[Spec] = &[
    spec!(global "abort", "", 0, Some(0), "", "", "simulate a program crash using abort(3)"),
    spec!("aio_flush", "", 0, Some(0), "", "", "completes all outstanding aio requests"),
    spec!(
        "aio_read",
        "",
        2,
        None,
        "[-Ciqrv] [-P pattern] off len [len..]",
        "CiP:qrv",
        "asynchronously reads a number of bytes"
    ),
    spec!(
        "aio_write",
        "",
        2,
        None,
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "CfiP:qruz",
        "asynchronously writes a number of bytes"
    ),
    spec!("alloc", "a", 1, Some(2), "offset [count]", "-", "checks if offset is allocated in the file"),
    spec!(global "close", "c", 0, Some(0), "", "", "close the current open file"),
    spec!("discard", "d", 2, None, "[-Cq] off len", "Cq", "discards a number of bytes at a specified offset"),
    spec!("flush", "f", 0, Some(0), "", "", "flush all in-core file state to disk"),
    spec!(global "help", "?", 0, Some(1), "[command]", "-", "help for one or all commands"),
    spec!("info", "i", 0, Some(0), "", "", "prints information about the current file"),
    spec!("length", "l", 0, Some(0), "", "", "gets the length of the current file"),
    spec!("map", "", 0, Some(0), "", "", "prints the allocated areas of a file"),
    spec!(
        global "open",
        "o",
        1,
        None,
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "snCro:ki:t:d:U",
        "open the file specified by path"
    ),
    spec!(global "quit", "q", 0, None, "", "-", "exit the program"),
    spec!(
        "read",
        "r",
        2,
        None,
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "bCl:pP:qrs:v",
        "reads a number of bytes at a specified offset"
    ),
    spec!(
        "readv",
        "",
        2,
        None,
        "[-Cqrv] [-P pattern] off len [len..]",
        "CP:qrv",
        "reads a number of bytes at a specified offset"
    ),
    spec!("reopen", "", 0, None, "[(-r|-w)] [-c cache] [-o options]", "c:o:rw", "reopens an image with new options"),
    spec!(global "sleep", "", 1, Some(1), "", "-", "waits for the given value in milliseconds"),
    spec!(
        "truncate",
        "t",
        1,
        Some(3),
        "[-m prealloc_mode] off",
        "m:",
        "truncates the current file at the given offset"
    ),
    spec!(
        "write",
        "w",
        2,
        None,
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "bcCfnpP:qrs:uz",
        "writes a number of bytes at a specified offset"
    ),
    spec!(
        "writev",
        "",
        2,
        None,
        "[-Cfqr] [-P pattern] off len [len..]",
        "CfP:qr",
        "writes a number of bytes at a specified offset"
    ),
];

/// Commands of qemu-io that make no sense for a tool without a device emulation: refused by name.
pub(crate) const REFUSED: &[&str] = &[
    "break",
    "remove_break",
    "resume",
    "wait_break",
    "sigraise",
    "zone_append",
    "zap",
    "zone_close",
    "zc",
    "zone_finish",
    "zf",
    "zone_open",
    "zo",
    "zone_report",
    "zrp",
    "zone_reset",
    "zrs",
];

/// Finds a command by either name.
pub(crate) fn find(name: &str) -> Option<&'static Spec> {
    COMMANDS.iter().find(|spec| spec.name == name || (!spec.short.is_empty() && spec.short == name))
}

/// The text of `help`: a line for each command, or all about one; `None` for a name that is no command.
pub(crate) fn help(name: Option<&str>) -> Option<String> {
    match name {
        None => {
            let mut text: String = COMMANDS.iter().map(|spec| spec.usage() + "\n").collect();
            text.push_str("\nUse 'help commandname' for extended help.\n");
            Some(text)
        }
        Some(name) => {
            let spec = find(name)?;
            let mut text = spec.usage() + "\n";
            if let Some((_, lines)) = DETAILS.iter().find(|(command, _)| *command == spec.name) {
                text.push_str(lines);
            }
            Some(text)
        }
    }
}

/// What each option does, for the commands that have any.
const DETAILS: &[(&str, &str)] = &[
    (
        "read",
        "
 Reads a range of bytes, and compares or dumps it when asked.
 Example: 'read -v 512 1k' dumps 1 KiB from offset 512.

 -C, -- report numbers on one line, for programs
 -P, -- compare with this byte; -s and -l narrow the part that is compared
 -p, -r -- accepted, change nothing
 -q, -- report nothing
 -v, -- dump the bytes
",
    ),
    (
        "write",
        "
 Writes a range of bytes: 0xcd, unless another source is named.
 Example: 'write -P 0x11 512 1k' writes 1 KiB at offset 512.

 -c, -- write compressed clusters
 -C, -- report numbers on one line, for programs
 -f, -- durable before the command ends
 -n, -- with -z, refuse to write zero bytes instead of a zero mapping
 -P, -- the byte to write
 -p, -r -- accepted, change nothing
 -q, -- report nothing
 -s, -- write the bytes of a file, repeated
 -u, -- with -z, space may be given back
 -z, -- write zeros as a mapping
",
    ),
    (
        "open",
        "
 Opens an image for the commands that follow.
 Example: 'open -o driver=raw disk.img'.

 -r, -- read-only
 -U, -- do not take locks
 -t, -- cache mode
 -d, -- 'unmap' passes discards on, 'ignore' makes them do nothing
 -o, -- options of the image, key=value,...
",
    ),
];
