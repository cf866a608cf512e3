// The package beside the command line, on the same images in one run: `cargo xtask bench wasm` runs it.
//
//   node bench.mjs FOLDER PROGRAM
//
// Both open the file where it is. The command line's time is that of a whole process; the package's begins with the
// module loaded, and warm, as it is in a page.

import { execFileSync } from "node:child_process";
import { closeSync, existsSync, ftruncateSync, openSync, renameSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { FileSource, Image, replay, Trace } from "qcowkit";
import { readFileSync } from "node:fs";

const [folder, program] = process.argv.slice(2);
const ROUNDS = 5;

// An image with many runs: every other cluster of 4 KiB, in an order that jumps about.
function scattered(path) {
  if (existsSync(path)) {
    return;
  }
  const image = Image.create(2 ** 31, { cluster_size: 4096 });
  const bytes = new Uint8Array(4096).fill(7);
  const count = 200_000;
  for (let index = 0; index < count; index += 1) {
    image.write(((index * 7919) % count) * 8192, bytes);
  }
  const file = openSync(`${path}.partial`, "w");
  for (const { offset, length, source } of image.parts()) {
    for (let at = offset; source !== "zeros" && at < offset + length; at += 1 << 24) {
      writeSync(file, image.hostBytes(at, Math.min(1 << 24, offset + length - at)), 0, undefined, at);
    }
  }
  ftruncateSync(file, image.fileLength);
  closeSync(file);
  image.close();
  renameSync(`${path}.partial`, path);
}

const huge = join(folder, "wasm-huge.qcow2");
if (!existsSync(huge)) {
  execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", `${huge}.partial`, "1T"]);
  renameSync(`${huge}.partial`, huge);
}
const many = join(folder, "wasm-many.qcow2");
scattered(many);
const csv = join(folder, "wasm-trace.csv");
if (!existsSync(csv)) {
  const text = execFileSync(program, ["churn", "-s", "64G", "-n", "500000", "--fill", "30", "--trim", "50000"], { maxBuffer: 1 << 30 });
  writeFileSync(csv, text);
}

function withImage(path, use) {
  const source = new FileSource(path);
  const image = Image.open(source, { read_only: true });
  const result = use(image);
  image.close();
  source.close();
  return result;
}

const CASES = [
  ["check, 1 TiB with preallocated metadata", ["check", huge], () => withImage(huge, (image) => image.check().allocated_clusters)],
  ["check, 200,000 scattered clusters of 4 KiB", ["check", many], () => withImage(many, (image) => image.check().allocated_clusters)],
  ["map, 400,000 runs", ["map", "--output=json", many], () => withImage(many, (image) => image.map().length)],
  ["replay, 500,000 operations on 64 GiB, unmap", ["replay", "-s", "64G", "-p", "unmap", "--output=json", csv], () => {
    const trace = Trace.parse(readFileSync(csv));
    const report = replay(trace, { size: 64 * 2 ** 30 }, { configs: [{}] });
    trace.close();
    return report.runs.length;
  }],
];

const median = (times) => times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
const timed = (work) => {
  const start = performance.now();
  work();
  return (performance.now() - start) / 1000;
};

console.log("| job | native | wasm | times native | wanted |\n|---|--:|--:|--:|--:|");
let met = true;
for (const [name, words, work] of CASES) {
  const native = [];
  const wasm = [];
  // In turn, so that what else the machine does meets both; the first round warms up.
  for (let round = 0; round <= ROUNDS; round += 1) {
    native.push(timed(() => execFileSync(program, words, { stdio: ["ignore", "ignore", "ignore"], maxBuffer: 1 << 30 })));
    wasm.push(timed(work));
  }
  const [ours, theirs] = [median(wasm.slice(1)), median(native.slice(1))];
  const ratio = ours / theirs;
  met &&= ratio <= 3;
  console.log(`| ${name} | ${theirs.toFixed(3)} s | ${ours.toFixed(3)} s | ${ratio.toFixed(2)} | 3 |`);
}
process.exitCode = met ? 0 : 3;
