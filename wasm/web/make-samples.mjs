// Makes the three images that come with the page: node make-samples.mjs. Needs qemu-img, qemu-io and mkfs.ext4.
// They are kept in the repository, packed, since times and identifiers in them differ from run to run.

import { execFileSync } from "node:child_process";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const OUT = fileURLToPath(new URL("public/samples/", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "qcowkit-samples-"));
const run = (program, args, input) => execFileSync(program, args, { cwd: folder, input, stdio: ["pipe", "pipe", "pipe"], encoding: "utf8", env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` } });
const img = (line) => run("qemu-img", line.split(" "));
const io = (file, commands, options = []) => run("qemu-io", [...options, ...commands.flatMap((command) => ["-c", command]), file]);

// The same numbers each time.
let state = 1;
const random = (below) => {
  state = (state * 1103515245 + 12345) % 2 ** 31;
  return Math.floor((state / 2 ** 31) * below);
};

// Writes an MBR: type, first MiB and length in MiB of each partition.
function partition(file, parts) {
  const table = Buffer.alloc(512);
  parts.forEach(([type, start, length], index) => {
    const at = 446 + index * 16;
    table[at] = index === 0 ? 0x80 : 0;
    table[at + 4] = type;
    table.writeUInt32LE(start * 2048, at + 8);
    table.writeUInt32LE(length * 2048, at + 12);
  });
  table.writeUInt32LE(0x51464921, 440);
  table.writeUInt16BE(0x55aa, 510);
  const disk = openSync(file, "r+");
  writeSync(disk, table, 0, 512, 0);
  closeSync(disk);
}

// A disk that was used: partitions, a file system, packed clusters, a snapshot, a bitmap, and holes after discards.
function used() {
  run("truncate", ["-s", "96M", "disk.raw"]);
  run("mkfs.ext4", ["-q", "-F", "-E", "offset=17825792,nodiscard", "-O", "^has_journal", "-L", "root", "disk.raw", "64M"]);
  partition(join(folder, "disk.raw"), [[0x0c, 1, 16], [0x83, 17, 64], [0x82, 81, 15]]);
  img("create -q -f qcow2 -o cluster_size=16k,refcount_bits=16 used.qcow2 96M");
  img("convert -n --target-is-zero -S 16k -f raw -O qcow2 disk.raw used.qcow2");
  const root = 17 << 20;
  const place = (most, size) => root + random(most / size) * size;
  const commands = [];
  for (let file = 0; file < 130; file += 1) {
    commands.push(`write -q -P ${1 + random(250)} ${place(52 << 20, 4096)} ${4096 * (1 + random(60))}`);
  }
  for (let packed = 0; packed < 90; packed += 1) {
    commands.push(`write -q -c -P ${1 + random(250)} ${root + (54 << 20) + packed * 16384} 16384`);
  }
  io("used.qcow2", commands);
  img("bitmap --add used.qcow2 backup");
  img("snapshot -c before-upgrade used.qcow2");
  const later = [];
  for (let file = 0; file < 60; file += 1) {
    later.push(`write -q -P ${1 + random(250)} ${place(52 << 20, 4096)} ${4096 * (1 + random(40))}`, `discard -q ${place(52 << 20, 16384)} ${16384 * (1 + random(24))}`);
  }
  later.push(`write -q -z ${root + (30 << 20)} 1M`);
  io("used.qcow2", later, ["-d", "unmap"]);
  img("snapshot -c nightly used.qcow2");
  io("used.qcow2", Array.from({ length: 40 }, () => `discard -q ${place(52 << 20, 16384)} ${16384 * (1 + random(30))}`), ["-d", "unmap"]);
  img("snapshot -d nightly used.qcow2");
}

// Subclusters in all their states, and zstd.
function subclusters() {
  img("create -q -f qcow2 -o cluster_size=64k,extended_l2=on,compression_type=zstd subclusters.qcow2 64M");
  const commands = [];
  for (let at = 0; at < 150; at += 1) {
    commands.push(`write -q -P ${1 + random(250)} ${random(24 << 9) * 2048} ${2048 * (1 + random(20))}`);
  }
  for (let at = 0; at < 40; at += 1) {
    commands.push(`write -q -z ${random(24 << 9) * 2048} ${2048 * (1 + random(48))}`);
  }
  for (let at = 0; at < 24; at += 1) {
    commands.push(`write -q -c -P ${1 + random(250)} ${(32 << 20) + at * 65536} 65536`);
  }
  commands.push("write -q -z -u 26M 2M", "write -q -P 7 40M 3M", "write -q -z 41M 1M");
  io("subclusters.qcow2", commands);
}

// Faults of several kinds in a small image.
function damaged() {
  img("create -q -f qcow2 -o cluster_size=4k damaged.qcow2 8M");
  io("damaged.qcow2", Array.from({ length: 60 }, () => `write -q -P ${1 + random(250)} ${random(1500) * 4096} ${4096 * (1 + random(12))}`));
  const file = join(folder, "damaged.qcow2");
  const bytes = readFileSync(file);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const refcounts = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
  const used = Array.from({ length: 512 }, (_, index) => l2 + index * 8).filter((at) => bytes.readBigUInt64BE(at) !== 0n);
  const count = (cluster, value) => bytes.writeUInt16BE(value, refcounts + cluster * 2);
  const clusters = bytes.length / 4096;
  // Leaks: entries that are forgotten. Corruptions: refcounts that are too low, an entry that leads nowhere, reserved bits.
  used.slice(10, 26).forEach((at) => bytes.writeBigUInt64BE(0n, at));
  [40, 41, 42, 90].forEach((cluster) => count(cluster, 0));
  count(clusters - 3, 7);
  bytes.writeBigUInt64BE(0x8000000040000000n, used[40]);
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(used[60]) | 0x3en, used[60]);
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(used[80]), used[81]);
  writeFileSync(file, bytes);
}

try {
  mkdirSync(OUT, { recursive: true });
  let all = 0;
  for (const [name, make] of Object.entries({ used, subclusters, damaged })) {
    make();
    const packed = gzipSync(readFileSync(join(folder, `${name}.qcow2`)), { level: 9 });
    writeFileSync(join(OUT, `${name}.qcow2.gz`), packed);
    all += packed.length;
    console.log(`${name}.qcow2.gz: ${packed.length} bytes of ${readFileSync(join(folder, `${name}.qcow2`)).length}`);
  }
  if (all > 100_000) {
    throw new Error(`the samples are ${all} bytes, more than 100,000`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
