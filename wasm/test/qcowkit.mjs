// The command line, built from the same tree: its JSON is what the package's has to be.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAM = process.env.QCOWKIT_PROGRAM;

// A folder that goes when the test ends.
export function folder(t) {
  const path = mkdtempSync(join(tmpdir(), "qcowkit-wasm-"));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

// Runs a line of the shell in a folder.
export function run(cwd, line) {
  return execFileSync("sh", ["-c", line], { cwd, encoding: "utf8", maxBuffer: 1 << 28 });
}

// Runs the command line and reads its JSON, integers beyond 2^53 as bigints, as the package has them.
export function qcowkit(cwd, line, input) {
  if (!PROGRAM) {
    throw new Error("QCOWKIT_PROGRAM must name the command line; cargo xtask test sets it");
  }
  const done = spawnSync(PROGRAM, line.split(" "), { cwd, encoding: "utf8", input, maxBuffer: 1 << 28 });
  if (done.error || done.stdout === "") {
    throw done.error ?? new Error(`${line}: ${done.stderr}`);
  }
  return parse(done.stdout);
}

// Runs the command line for its text.
export function qcowkitText(cwd, line) {
  return execFileSync(PROGRAM, line.split(" "), { cwd, encoding: "utf8", maxBuffer: 1 << 28 });
}

function parse(text) {
  const quoted = text.replace(/("(?:raw|raw_bitmap)": )(\d+)/g, '$1"#$2"').replace(/: (\d{16,})/g, ': "#$1"');
  return JSON.parse(quoted, (key, value) => {
    if (typeof value !== "string" || !/^#\d+$/.test(value)) {
      return value;
    }
    const integer = BigInt(value.slice(1));
    return key.startsWith("raw") || integer >= 2n ** 53n ? integer : Number(integer);
  });
}

// The bytes of a file.
export function bytesOf(...path) {
  return new Uint8Array(readFileSync(join(...path)));
}

// Writes bytes to a file and has QEMU check it: 0 is clean, 3 leaks.
export function qemuCheck(cwd, bytes, name = "checked.qcow2") {
  writeFileSync(join(cwd, name), bytes);
  return spawnSync("qemu-img", ["check", "-f", "qcow2", name], { cwd, encoding: "utf8" }).status;
}

// The disk of an image as QEMU reads it.
export function qemuBytes(cwd, name, format = "qcow2") {
  execFileSync("qemu-img", ["convert", "-f", format, "-O", "raw", name, "guest.raw"], { cwd });
  const bytes = bytesOf(cwd, "guest.raw");
  rmSync(join(cwd, "guest.raw"));
  return bytes;
}

// Numbers that look random and are the same every time.
export function random(seed) {
  let state = seed >>> 0 || 1;
  return (bound) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % bound;
  };
}

// What a write of the shared suite puts there: bytes that differ, beginning with `first`.
export function fill(into, first) {
  for (let index = 0; index < into.length; index += 1) {
    into[index] = first + index * 7 + (index >> 9);
  }
}

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit += 1) {
    value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return value;
});

// CRC-32 as zlib has it.
export function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) {
    sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  }
  return (sum ^ 0xffffffff) >>> 0;
}
