// The shared suite of image operations: what core/tests/operations.rs replays in Rust.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { Image } from "qcowkit";
import { crc32, fill, folder, qemuBytes, qemuCheck } from "../qcowkit.mjs";

const CASES = JSON.parse(readFileSync(new URL("../../../core/tests/data/operations.json", import.meta.url), "utf8"));

const DO = {
  write(image, { offset, length, byte }) {
    const bytes = new Uint8Array(length);
    fill(bytes, byte);
    image.write(offset, bytes);
  },
  write_zeroes: (image, { offset, length, unmap }) => image.writeZeroes(offset, length, { unmap }),
  discard: (image, range) => image.discard(range),
  create_snapshot: (image, name) => image.createSnapshot(name),
  apply_snapshot: (image, name) => image.applySnapshot(name),
  delete_snapshot: (image, name) => image.deleteSnapshot(name),
  resize: (image, size) => image.resize(size),
};

for (const { name, size, options, operations, end_size, crc32: expected, snapshots } of CASES) {
  test(`shared suite: ${name}`, (t) => {
    const image = Image.create(size, options);
    for (const operation of operations) {
      if (operation === "flush") {
        image.flush();
        continue;
      }
      const [[kind, parameters]] = Object.entries(operation);
      DO[kind](image, parameters);
    }
    assert.equal(image.virtualSize, end_size);
    assert.equal(crc32(image.read(0, end_size)), expected);
    for (const [id, sum] of Object.entries(snapshots)) {
      const view = image.openSnapshot(id);
      assert.equal(crc32(view.read(0, view.virtualSize)), sum, id);
      view.close();
    }
    const report = image.check();
    assert.deepEqual([report.corruptions, report.leaks, report.check_errors], [0, 0, 0]);
    const cwd = folder(t);
    assert.equal(qemuCheck(cwd, image.save()), 0);
    assert.equal(crc32(qemuBytes(cwd, "checked.qcow2")), expected);
  });
}
