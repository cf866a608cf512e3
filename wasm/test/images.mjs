// Images made by QEMU, the reference for what the format means.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

// Runs qemu-img commands in a new folder and returns the bytes of `disk.qcow2`, and what qemu-img says of it without
// what only a file system knows.
export function made(...commands) {
  const folder = mkdtempSync(join(tmpdir(), "qcowkit-image-"));
  const qemuImg = (line) => execFileSync("qemu-img", line.split(" "), { cwd: folder, encoding: "utf8" });
  try {
    commands.forEach(qemuImg);
    const said = JSON.parse(qemuImg("info --output=json disk.qcow2"));
    for (const key of ["children", "filename", "actual-size", "full-backing-filename"]) {
      delete said[key];
    }
    return { bytes: new Uint8Array(readFileSync(join(folder, "disk.qcow2"))), said };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

// The same bytes with some of them changed.
export function edited(bytes, offset, change) {
  const copy = bytes.slice();
  copy.set(change, offset);
  return copy;
}

// One image a feature.
export const FEATURES = [
  ["create -f qcow2 disk.qcow2 64M"],
  ["create -f qcow2 -o compat=0.10 disk.qcow2 1M"],
  ["create -f qcow2 -o cluster_size=512,refcount_bits=64 disk.qcow2 1M"],
  ["create -f qcow2 -o extended_l2=on,compression_type=zstd disk.qcow2 1M"],
  ["create -f qcow2 -o lazy_refcounts=on disk.qcow2 1T"],
  ["create -f qcow2 -o data_file=data.raw,data_file_raw=on disk.qcow2 1M"],
  ["create -f qcow2 -u -b gone.qcow2 -F qcow2 disk.qcow2 1M"],
  [
    "create -f qcow2 --object secret,id=s,data=abc " +
      "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1 disk.qcow2 1M",
  ],
  ["create -f qcow2 disk.qcow2 1M", "snapshot -c before disk.qcow2", "bitmap --add disk.qcow2 backup"],
];
