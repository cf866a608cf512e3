//! `cargo xtask web`: a server of files for the inspector, on this machine alone.
//!
//! It answers `GET` and `HEAD`, with `Range` so that images can be opened by their address, and sends the policy that
//! the page also carries. Nothing is written, nothing is listed, and no other machine is listened to.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::run::{self, Failure};
use crate::wasm;

const PORT: u16 = 8520;
/// A request's first line and headers together are no longer.
const MAX_REQUEST_BYTES: u64 = 16 << 10;
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the page may do: run its own scripts and its module, and ask its own server. Its worker asks for a blob of the page
/// whether it shall stop.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data: blob:; \
    connect-src 'self' blob:; worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a worker may do that the page starts by its address: it does so only for an image of another server that a
/// person asked for. Other workers have the page's policy.
const WORKER_POLICY: &str =
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' blob: http: https:";

/// The verb.
pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let options = Options::parse(arguments)?;
    let served = Served { page: wasm::inspector()?, images: options.images };
    let listener = TcpListener::bind(("127.0.0.1", options.port))?;
    run::say(&format!("the inspector is at http://{}/ (end with Ctrl-C)", listener.local_addr()?));
    if let Some(folder) = &served.images {
        run::say(&format!("files of {} are at /images/", folder.display()));
    }
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            let served = &served;
            // A browser that goes away in the middle is no failure.
            scope.spawn(move || drop(answer(&stream, served)));
        }
    });
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    port: u16,
    images: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { port: PORT, images: None };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let value = || words.clone().next().ok_or_else(|| Failure::new(format!("{word} needs a value")));
            match word.as_str() {
                "--port" => {
                    let text = value()?;
                    options.port = text.parse().map_err(|_| Failure::new(format!("'{text}' is not a port")))?;
                }
                "--images" => options.images = Some(PathBuf::from(value()?).canonicalize()?),
                _ => return Err(Failure::new(format!("unexpected argument {word}"))),
            }
            words.next();
        }
        Ok(options)
    }
}

/// The folders that are served.
struct Served {
    page: PathBuf,
    images: Option<PathBuf>,
}

impl Served {
    /// The file behind the path of a request. Links that lead out of the folder lead nowhere.
    fn find(&self, path: &str) -> Option<PathBuf> {
        let path = decoded(path.split(['?', '#']).next()?)?;
        let (folder, rest) = match (path.strip_prefix("/images/"), &self.images) {
            (Some(rest), Some(images)) => (images, rest.to_owned()),
            _ => (&self.page, path.trim_start_matches('/').to_owned()),
        };
        let rest = if rest.is_empty() { "index.html".to_owned() } else { rest };
        let root = folder.canonicalize().ok()?;
        let file = root.join(rest).canonicalize().ok()?;
        (file.starts_with(&root) && file.is_file()).then_some(file)
    }
}

/// The path with its `%xx`; nothing for what is not one.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|path| path.starts_with('/') && !path.contains('\0'))
}

/// The parts of a request that matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream.take(MAX_REQUEST_BYTES)).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let mut request = Self { method: words.next()?.into(), path: words.next()?.into(), range: None };
        for line in lines {
            let line = line.ok()?;
            if line.is_empty() {
                return Some(request);
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("range")
            {
                request.range = Some(value.trim().to_owned());
            }
        }
        None
    }
}

/// The first byte and the end of a range of a file.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(u64, u64),
    /// Nothing of the file lies in it.
    Outside,
}

/// What a `Range` header asks of a file: one range of bytes; what else there is in the standard is answered whole.
fn part(range: Option<&str>, length: u64) -> Part {
    let Some((from, to)) = range.and_then(|range| range.strip_prefix("bytes=")).and_then(|range| range.split_once('-'))
    else {
        return Part::Whole;
    };
    match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), _) if from >= length => Part::Outside,
        (Ok(from), Ok(to)) if to >= from => Part::Range(from, length.min(to.saturating_add(1))),
        (Ok(from), Err(_)) if to.is_empty() => Part::Range(from, length),
        (Err(_), Ok(last)) if from.is_empty() && last > 0 => Part::Range(length.saturating_sub(last), length),
        _ => Part::Whole,
    }
}

fn answer(stream: &TcpStream, served: &Served) -> std::io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut out = stream;
    let Some(request) = Request::read(stream) else { return refuse(out, "400 Bad Request") };
    if request.method != "GET" && request.method != "HEAD" {
        return refuse(out, "405 Method Not Allowed");
    }
    let Some(path) = served.find(&request.path) else { return refuse(out, "404 Not Found") };
    let mut file = File::open(&path)?;
    let about = file.metadata()?;
    let (status, from, end) = match part(request.range.as_deref(), about.len()) {
        Part::Whole => ("200 OK", 0, about.len()),
        Part::Range(from, end) => ("206 Partial Content", from, end),
        Part::Outside => return refuse(out, "416 Range Not Satisfiable"),
    };
    let mut head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n", end - from);
    if status.starts_with("206") {
        head.push_str(&format!("Content-Range: bytes {from}-{}/{}\r\n", end.saturating_sub(1), about.len()));
    }
    head.push_str(&headers(&path, &about));
    out.write_all(head.as_bytes())?;
    if request.method == "GET" {
        file.seek(SeekFrom::Start(from))?;
        std::io::copy(&mut file.take(end - from), &mut out)?;
    }
    Ok(())
}

/// Type, version and policy of a file, and the empty line.
fn headers(path: &Path, about: &std::fs::Metadata) -> String {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let policy = if name.starts_with("worker-") { WORKER_POLICY } else { PAGE_POLICY };
    let changed = about.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(
        "Content-Type: {}\r\nETag: \"{:x}-{:x}\"\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n\
        Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\nContent-Security-Policy: {policy}\r\n\r\n",
        content_type(path),
        about.len(),
        changed.as_nanos()
    )
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

fn refuse(mut out: &TcpStream, status: &str) -> std::io::Result<()> {
    let text = format!("{status}\n");
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    out.write_all(head.as_bytes())?;
    out.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let cases = [
            (None, Part::Whole),
            (Some("bytes=0-3"), Part::Range(0, 4)),
            (Some("bytes=6-99"), Part::Range(6, 10)),
            (Some("bytes=4-"), Part::Range(4, 10)),
            (Some("bytes=-3"), Part::Range(7, 10)),
            (Some("bytes=10-11"), Part::Outside),
            (Some("bytes=5-2"), Part::Whole),
            (Some("items=0-3"), Part::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(part(range, 10), expected, "{range:?}");
        }
    }

    #[test]
    fn nothing_outside_the_folder_is_found() {
        let served = Served { page: run::root().join("xtask/src"), images: Some(run::root().join("docs")) };
        assert!(served.find("/web.rs?x").is_some() && served.find("/%77eb.rs").is_some());
        assert!(served.find("/images/architecture.md").is_some());
        for path in
            ["/", "/../Cargo.toml", "/%2e%2e/Cargo.toml", "/images/../README.md", "web.rs", "/bench", "/%zz", "/%0"]
        {
            assert_eq!(served.find(path), None, "{path}");
        }
    }

    #[test]
    fn requests_are_answered() {
        let folder = run::target("tmp/web").unwrap_or_default();
        let page = std::fs::write(folder.join("index.html"), "0123456789");
        let listener = TcpListener::bind(("127.0.0.1", 0)).ok().filter(|_| page.is_ok());
        let Some(listener) = listener else { panic!("no port on this machine") };
        let served = Served { page: folder, images: None };
        let ask = |text: &str| {
            let mut client = listener.local_addr().and_then(TcpStream::connect).ok()?;
            client.write_all(text.as_bytes()).ok()?;
            answer(&listener.accept().ok()?.0, &served).ok()?;
            let mut said = String::new();
            client.read_to_string(&mut said).ok()?;
            Some(said)
        };
        let whole = ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap_or_default();
        assert!(whole.starts_with("HTTP/1.1 200 OK") && whole.ends_with("\r\n\r\n0123456789"), "{whole}");
        assert!(whole.contains("connect-src 'self' blob:;") && whole.contains("text/html"), "{whole}");
        let some = ask("GET /index.html HTTP/1.1\r\nrange: bytes=2-4\r\n\r\n").unwrap_or_default();
        assert!(some.starts_with("HTTP/1.1 206") && some.ends_with("\r\n\r\n234"), "{some}");
        assert!(some.contains("Content-Range: bytes 2-4/10"), "{some}");
        let head = ask("HEAD / HTTP/1.1\r\n\r\n").unwrap_or_default();
        assert!(head.contains("Content-Length: 10") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask("POST / HTTP/1.1\r\n\r\n").unwrap_or_default().starts_with("HTTP/1.1 405"));
        assert!(ask("GET /gone HTTP/1.1\r\n\r\n").unwrap_or_default().starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn options_have_values() {
        let parse = |words: &[&str]| Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&["--port", "1"]).ok(), Some(Options { port: 1, images: None }));
        assert!(parse(&["--port"]).is_err() && parse(&["--port", "x"]).is_err() && parse(&["y"]).is_err());
    }
}
