// Writes core/tests/data/operations.json: the shared suite of image operations, which Rust (core/tests/operations.rs) and
// JavaScript (node/operations.test.mjs) both replay. What the disk holds in the end comes from a model here that knows
// nothing of qcow2 but that a discard takes whole clusters.
//
//   node wasm/test/make-operations.mjs

import { writeFileSync } from "node:fs";
import { crc32, fill, random } from "./qcowkit.mjs";

const MIB = 1 << 20;
const KINDS = [
  ["default", 24 * MIB, {}],
  ["no-unref", 24 * MIB, { unref: "retain_unshared" }],
  ["version 2", 16 * MIB, { compat: "0.10" }],
  ["small clusters", 3 * MIB, { cluster_size: 512, refcount_bits: 4 }],
  ["subclusters", 24 * MIB, { extended_l2: true, cluster_size: 65536 }],
  ["large clusters, near", 48 * MIB, { cluster_size: 2 * MIB, allocation: "near" }],
  ["preallocated, fill-holes", 12 * MIB, { preallocation: "metadata", allocation: "fill-holes" }],
];

function make([name, size, options], seed) {
  const next = random(seed);
  const cluster = options.cluster_size ?? 65536;
  const operations = [];
  let disk = new Uint8Array(size);
  const snapshots = new Map();
  for (let step = 0; step < 150; step += 1) {
    const end = disk.length;
    const offset = next(2) ? next(end) : Math.floor(next(end) / 4096) * 4096;
    const length = Math.min(1 + next([600, 20_000, 300_000, 2 * MIB][next(4)]), end - offset);
    const kind = next(100);
    if (kind < 50) {
      const byte = 1 + next(255);
      operations.push({ write: { offset, length, byte } });
      fill(disk.subarray(offset, offset + length), byte);
    } else if (kind < 65) {
      operations.push({ write_zeroes: { offset, length, unmap: next(2) === 1 } });
      disk.fill(0, offset, offset + length);
    } else if (kind < 88) {
      operations.push({ discard: { offset, length } });
      const first = Math.ceil(offset / cluster) * cluster;
      const last = offset + length === end ? end : Math.floor((offset + length) / cluster) * cluster;
      if (first < last) {
        disk.fill(0, first, last);
      }
    } else if (kind < 91) {
      const id = `s${step}`;
      operations.push({ create_snapshot: id });
      snapshots.set(id, disk.slice());
    } else if (kind < 94 && snapshots.size > 0) {
      const id = [...snapshots.keys()][next(snapshots.size)];
      operations.push({ apply_snapshot: id });
      disk = snapshots.get(id).slice();
    } else if (kind < 96 && snapshots.size > 0) {
      const id = [...snapshots.keys()][next(snapshots.size)];
      operations.push({ delete_snapshot: id });
      snapshots.delete(id);
    } else if (kind < 98 && options.compat !== "0.10") {
      const grown = disk.length + MIB;
      operations.push({ resize: grown });
      const larger = new Uint8Array(grown);
      larger.set(disk);
      disk = larger;
    } else {
      operations.push("flush");
    }
  }
  return {
    name, size, options, operations, end_size: disk.length, crc32: crc32(disk),
    snapshots: Object.fromEntries([...snapshots].map(([id, bytes]) => [id, crc32(bytes)])),
  };
}

const cases = KINDS.map((kind, index) => make(kind, 100 + index));
const lines = cases.map((one) => JSON.stringify(one));
writeFileSync(new URL("../../core/tests/data/operations.json", import.meta.url), `[\n${lines.join(",\n")}\n]\n`);
