//! Reads a compiled module and writes the JavaScript that loads it and calls it.
//!
//! `xtask-bindgen MODULE.wasm MODULE.map OUT` writes `OUT/qcowkit.js` with its types, and the module in pieces: `OUT/qcowkit_bg.wasm`,
//! which is loaded first, and the parts `OUT/qcowkit_NAME.wasm`, which `OUT/qcowkit_parts.js` lists. The map is the linker's; it
//! tells where the parts' constants lie. It is the form for the
//! web, which Node and bundlers load too. It is the library behind the wasm-bindgen command line, pinned by `Cargo.lock`
//! to the very version that the module was compiled against; an installed command line of another version would refuse
//! it. It is a crate of its own so that `xtask` itself stays free of dependencies.

mod constants;
mod parts;
mod plan;
mod split;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use walrus::{Module, ValType};
use wasm_bindgen_cli_support::Bindgen;

use crate::parts::Part;
use crate::split::Pieces;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [module, map, out] = arguments.as_slice() else {
        return fail("usage: xtask-bindgen MODULE.wasm MODULE.map OUT");
    };
    match generate(module, map, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn generate(module: &Path, map: &Path, out: &Path) -> Result<(), String> {
    let map = std::fs::read_to_string(map).map_err(|why| format!("{}: {why}", map.display()))?;
    let mut module = Module::from_file(module).map_err(text)?;
    // The JavaScript has to give the module what its parts are loaded with; the export keeps the import there until then.
    let loads = module.types.add(&[ValType::I32], &[]);
    let (load, _) = module.add_import_func(split::LOADER, "load", loads);
    module.exports.add(split::LOAD, load);
    let mut bindgen = Bindgen::new();
    bindgen.input_module("qcowkit", module).typescript(true).omit_default_module_path(false);
    bindgen.web(true).map_err(text)?;
    bindgen.generate(out).map_err(text)?;
    for types in ["qcowkit.d.ts", "qcowkit_bg.wasm.d.ts"] {
        let written = std::fs::read_to_string(out.join(types)).map_err(text)?;
        let kept: String = written.split_inclusive('\n').filter(|line| !line.contains(split::LOAD)).collect();
        write(out, types, anywhere(&kept))?;
    }
    let whole = std::fs::read(out.join("qcowkit_bg.wasm")).map_err(text)?;
    let pieces = split::split(&whole, parts::PARTS, &constants::of(&map, parts::PARTS)?)?;
    write(out, "qcowkit_bg.wasm", &pieces.first)?;
    for (part, (bytes, _)) in parts::PARTS.iter().zip(&pieces.parts) {
        write(out, &format!("qcowkit_{}.wasm", part.name), bytes)?;
    }
    write(out, "qcowkit_parts.js", list(&pieces))?;
    write(out, "qcowkit_parts.d.ts", LIST_TYPES)
}

/// Types that stand without the browser's library of types, as programs for Node are checked.
fn anywhere(types: &str) -> String {
    let types = types.replace("RequestInfo |", "string | Request |");
    let types = types.replace("BufferSource", "ArrayBuffer | ArrayBufferView<ArrayBuffer>");
    if types.contains("InitInput") { types + NAMES } else { types }
}

const NAMES: &str = r#"
// What other libraries of types than the browser's lack; where it is there, this adds nothing.
declare global {
    namespace WebAssembly {
        interface Memory {}
        interface Module {}
        interface Table {}
    }
    interface FileSystemFileHandle {}
}
"#;

fn text(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

fn write(out: &Path, name: &str, bytes: impl AsRef<[u8]>) -> Result<(), String> {
    std::fs::write(out.join(name), bytes).map_err(|error| format!("{name}: {error}"))
}

/// The list of the parts, and what the module calls to have them loaded.
fn list(pieces: &Pieces) -> String {
    let mut list = format!("export const POOL = \"{}\";\n\nexport const PARTS = [\n", pieces.pool);
    for (Part { name, .. }, (_, needs)) in parts::PARTS.iter().zip(&pieces.parts) {
        // Bundlers look for this very form.
        let url = format!("new URL(\"qcowkit_{name}.wasm\", import.meta.url)");
        list += &format!("    {{ name: \"{name}\", needs: {needs}, url: () => {url} }},\n");
    }
    list + LIST
}

const LIST: &str = r#"];

let loader;

export function setLoader(found) {
    loader = found;
}

export function load(parts) {
    loader(parts);
}

export function need(name) {
    loader(PARTS.find((part) => part.name === name).needs);
}
"#;

const LIST_TYPES: &str = r#"/** What the parts import from. */
export const POOL: string;

/** The parts of the module. `needs` are those that have to be there for one, itself among them: bit 0 is the first. */
export const PARTS: readonly { readonly name: string; readonly needs: number; readonly url: () => URL }[];

/** Sets what loads parts, which are given as bits, unless they are there, or throws. */
export function setLoader(loader: (parts: number) => void): void;

/** Called by the module. */
export function load(parts: number): void;

/** Called by the module. */
export function need(name: string): void;
"#;

#[expect(clippy::print_stderr, reason = "a command-line tool says why it stops")]
fn fail(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}
