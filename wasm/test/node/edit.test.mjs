// Edits in memory: what they do, how they are undone and saved, and that QEMU reads the same.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { FileSource, Image } from "qcowkit";
import { made } from "../images.mjs";
import { bytesOf, folder, qcowkit, qemuBytes, qemuCheck, random, run } from "../qcowkit.mjs";

const MIB = 1 << 20;

const KINDS = [
  {},
  { compat: "0.10" },
  { cluster_size: 512, refcount_bits: 1 },
  { cluster_size: 2 * MIB, refcount_bits: 64 },
  { extended_l2: true, cluster_size: 16384 },
  { lazy_refcounts: true, compression_type: "zstd" },
  { preallocation: "metadata" },
];

for (const options of KINDS) {
  test(`random edits beside a model: ${JSON.stringify(options)}`, (t) => {
    const cwd = folder(t);
    const size = 6 * MIB;
    const model = new Uint8Array(size);
    const image = Image.create(size, options);
    assert.equal(image.virtualSize, size);
    assert.equal(image.clusterSize, options.cluster_size ?? 65536);
    const next = random(JSON.stringify(options).length + 7);
    for (let round = 0; round < 120; round += 1) {
      const offset = next(size);
      const length = Math.min(next(3) === 0 ? next(MIB) : next(9000), size - offset);
      if (next(3) < 2) {
        const bytes = new Uint8Array(length).fill(1 + next(255));
        image.write(offset, bytes);
        model.set(bytes, offset);
      } else {
        image.writeZeroes(offset, length, { unmap: next(2) === 0 });
        model.fill(0, offset, offset + length);
      }
    }
    assert.deepEqual(image.read(0, size), model);
    const report = image.check();
    assert.deepEqual([report.corruptions, report.leaks, report.check_errors], [0, 0, 0]);
    const saved = image.save();
    assert.equal(saved.length, image.fileLength);
    assert.equal(qemuCheck(cwd, saved), 0);
    assert.deepEqual(qemuBytes(cwd, "checked.qcow2"), model);
    const again = Image.open(saved);
    assert.deepEqual(again.read(0, size), model);
  });
}

const POLICIES = [
  [{}, ""],
  [{ discard: false }, " -o discard=ignore"],
  [{ unref: "retain_unshared" }, " -o discard-no-unref=on"],
  [{ unref: "retain_qemu", retained_op: "zero_range" }, " -o unref=retain-qemu,retained-op=zero-range"],
  [{ unref: "retain_unshared", retained_op: "none" }, " -o unref=retain-unshared,retained-op=none"],
  [{ pass_discard_request: false, pass_discard_snapshot: false, pass_discard_other: true },
    " -o pass-discard-request=off,pass-discard-snapshot=off,pass-discard-other=on"],
];

for (const [policy, words] of POLICIES) {
  test(`a discard under ${JSON.stringify(policy)} is that of the command line`, (t) => {
    for (const name of ["plain", "snapshots", "subclusters", "zlib", "version_2"]) {
      const cwd = made(t, name);
      const ranges = [{ offset: 0, length: 65536 }, { offset: 100_000, length: 1_500_000 }, { offset: 2 * MIB, length: 5 }];
      const line = `discard${words} --output=json disk.qcow2 0+65536 100000+1500000 2M+5`;
      const shared = (report) => {
        const { filename, host_bytes_before, host_bytes_after, ...rest } = report;
        return rest;
      };
      const planned = shared(qcowkit(cwd, line.replace("discard", "discard --dry-run")));
      const image = Image.open(bytesOf(cwd, "disk.qcow2"));
      const before = image.save();
      assert.deepEqual(image.planDiscard(ranges, policy), planned, name);
      assert.deepEqual(image.save(), before, "a plan changes nothing");
      const checkpoint = image.checkpoint();
      const done = image.discard(ranges, policy);
      assert.deepEqual({ ...done, dry_run: true }, planned);
      assert.deepEqual(shared(qcowkit(cwd, line)), done, name);
      assert.deepEqual(image.save(), bytesOf(cwd, "disk.qcow2"), `${name}: byte for byte the file that the command line made`);
      assert.equal(qemuCheck(cwd, image.save()), 0);
      image.rollback(checkpoint);
      assert.deepEqual(image.save(), before);
    }
  });
}

test("an image that was opened under a policy discards under it", () => {
  const image = Image.create(MIB, { unref: "retain_unshared" });
  image.write(0, new Uint8Array(65536).fill(1));
  assert.equal(image.discard({ offset: 0, length: 65536 }).after.zero_retained, 65536);
  image.write(0, new Uint8Array(65536).fill(1));
  assert.equal(image.discard({ offset: 0, length: 65536 }, {}).after.zero_retained, 0);
});

test("snapshots are taken, viewed, applied and deleted", (t) => {
  const cwd = folder(t);
  const image = Image.create(4 * MIB);
  image.write(0, new Uint8Array(MIB).fill(1));
  const id = image.createSnapshot("first", { date: new Date(1_700_000_000_123) });
  assert.equal(id, "1");
  image.write(0, new Uint8Array(MIB).fill(2));
  image.resize(8 * MIB);
  assert.deepEqual(image.snapshots(), [{
    id: "1", name: "first", "vm-state-size": 0, "date-sec": 1_700_000_000, "date-nsec": 123_000_000,
    "vm-clock-sec": 0, "vm-clock-nsec": 0, "disk-size": 4 * MIB,
  }]);
  const view = image.openSnapshot("first");
  assert.deepEqual([view.virtualSize, view.readOnly, view.read(0, 1)[0]], [4 * MIB, true, 1]);
  assert.throws(() => view.write(0, new Uint8Array(1)), { code: "read_only" });
  image.write(0, new Uint8Array(MIB).fill(3));
  assert.equal(view.read(0, 1)[0], 1, "the view is of the file as it was");
  assert.equal(qemuCheck(cwd, image.save()), 0);
  image.applySnapshot("1");
  assert.deepEqual([image.virtualSize, image.read(0, 1)[0]], [4 * MIB, 1]);
  image.deleteSnapshot("first");
  assert.deepEqual(image.snapshots(), []);
  assert.equal(qemuCheck(cwd, image.save()), 0);
  assert.throws(() => image.applySnapshot("gone"), { code: "invalid_argument" });
  assert.throws(() => image.openSnapshot("gone"), { code: "invalid_argument" });
});

test("bitmaps are added, filled by writes and removed, as QEMU sees them", (t) => {
  const cwd = folder(t);
  const image = Image.create(8 * MIB);
  image.addBitmap("backup", { granularity: 65536 });
  image.write(MIB, new Uint8Array(1));
  image.discard({ offset: 2 * MIB, length: 128 * 1024 });
  assert.deepEqual(image.bitmapRanges("backup"), [{ offset: MIB, length: 65536 }, { offset: 2 * MIB, length: 131072 }]);
  writeFileSync(join(cwd, "disk.qcow2"), image.save());
  const info = JSON.parse(run(cwd, "qemu-img info --output=json disk.qcow2"));
  assert.deepEqual(info["format-specific"].data.bitmaps, [{ flags: ["auto"], granularity: 65536, name: "backup" }]);
  assert.equal(qemuCheck(cwd, image.save()), 0);
  image.removeBitmap("backup");
  assert.deepEqual(image.bitmaps(), []);
});

test("a disk shrinks only when that is said", () => {
  const image = Image.create(MIB);
  assert.throws(() => image.resize(65536), { code: "invalid_argument", message: /shrink/ });
  image.resize(65536, { shrink: true });
  image.resize(2 * MIB, { preallocation: "metadata" });
  assert.equal(image.info()["virtual-size"], 2 * MIB);
});

test("a disk of 1 TiB is edited in megabytes", (t) => {
  const cwd = folder(t);
  const image = Image.create(2 ** 40);
  for (let index = 0; index < 64; index += 1) {
    image.write(index * 2 ** 34 + 12_345, new Uint8Array(10_000).fill(1 + index));
  }
  image.discard({ offset: 2 ** 34, length: 2 ** 38 });
  assert.equal(image.read(3 * 2 ** 34 + 12_345, 1)[0], 0);
  assert.equal(image.read(63 * 2 ** 34 + 12_345, 1)[0], 64);
  assert.ok(image.editBytes < 16 * MIB, `${image.editBytes} bytes`);
  const parts = image.parts();
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  assert.equal(length, image.fileLength);
  assert.equal(qemuCheck(cwd, image.save()), 0);
});

test("edits of a source are a patch of the file below it", (t) => {
  const cwd = made(t, "snapshots");
  const path = join(cwd, "disk.qcow2");
  const original = bytesOf(path);
  const source = new FileSource(path);
  const image = Image.open(source);
  assert.deepEqual(image.patch(), []);
  assert.deepEqual(image.parts(), [{ offset: 0, length: original.length, source: "base" }]);
  image.write(123_456, new TextEncoder().encode("edited"));
  image.discard({ offset: MIB, length: MIB });
  image.write(15 * MIB, new Uint8Array(100_000).fill(9));
  const saved = image.save();
  assert.deepEqual(bytesOf(path), original, "the file is as it was");
  const applied = new Uint8Array(image.fileLength);
  applied.set(original.subarray(0, applied.length));
  let bytes = 0;
  for (const { offset, length, source: from } of image.patch()) {
    if (from === "zeros") {
      applied.fill(0, offset, offset + length);
    } else {
      assert.equal(from, "edits");
      applied.set(image.hostBytes(offset, length), offset);
      bytes += length;
    }
  }
  assert.deepEqual(applied, saved);
  assert.ok(bytes < 600_000, `${bytes} bytes`);
  assert.equal(qemuCheck(cwd, saved), 0);
  assert.equal(new TextDecoder().decode(qemuBytes(cwd, "checked.qcow2").subarray(123_456, 123_462)), "edited");
});

test("checkpoints go back and forward, and are forgotten", () => {
  const image = Image.create(MIB);
  const states = [];
  for (let value = 1; value <= 5; value += 1) {
    image.write(0, new Uint8Array(65536).fill(value));
    states.push([image.checkpoint(), image.save()]);
  }
  for (const at of [2, 0, 4, 1, 3]) {
    const [checkpoint, bytes] = states[at];
    image.rollback(checkpoint);
    assert.equal(image.read(0, 1)[0], at + 1);
    assert.deepEqual(image.save(), bytes);
  }
  image.dropCheckpoint(states[0][0]);
  assert.throws(() => image.rollback(states[0][0]), { code: "invalid_argument" });
});

test("layers come from the resolver, and from nowhere else", (t) => {
  const cwd = folder(t);
  for (const line of ["qemu-img create -f qcow2 base.qcow2 4M", "qemu-io -c 'write -P 1 0 1M' base.qcow2",
    "qemu-img create -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2", "qemu-io -c 'write -P 2 64k 64k' mid.qcow2",
    "qemu-img create -f qcow2 -b mid.qcow2 -F qcow2 disk.qcow2 6M", "qemu-io -c 'write -P 3 128k 64k' disk.qcow2"]) {
    run(cwd, line);
  }
  const path = join(cwd, "disk.qcow2");
  assert.throws(() => Image.open(bytesOf(path)), { code: "denied", structure: "backing_file", depth: 0, message: /mid\.qcow2/ });
  const asked = [];
  const resolver = (reference) => {
    asked.push(reference);
    return { input: new FileSource(join(cwd, reference.name)), identity: reference.name };
  };
  const image = Image.open(new FileSource(path), { resolver, identity: "disk.qcow2" });
  assert.deepEqual(asked, [
    { role: "backing_file", name: "mid.qcow2", format: "qcow2", depth: 0, from: "disk.qcow2" },
    { role: "backing_file", name: "base.qcow2", format: "qcow2", depth: 1, from: "mid.qcow2" },
  ]);
  assert.deepEqual(image.map(), JSON.parse(run(cwd, "qemu-img map --output=json disk.qcow2")));
  assert.deepEqual(image.read(0, 6 * MIB), qemuBytes(cwd, "disk.qcow2"));
  const printed = qcowkit(cwd, "inspect --backing-files=follow --guest=0 --guest=64k --output=json disk.qcow2").guest;
  assert.deepEqual([image.inspectGuest(0), image.inspectGuest(65536)], printed.map(({ layers }) => layers));
  // Copy on write from below, and a second opening, ask nobody again.
  image.write(10, new Uint8Array([7]));
  image.discard({ offset: 0, length: MIB }, { unref: "retain_unshared" });
  assert.equal(asked.length, 2);
  assert.equal(qemuCheck(cwd, image.save()), 0);

  assert.throws(() => Image.open(bytesOf(path), { resolver: () => undefined }), { code: "denied" });
  assert.throws(() => Image.open(bytesOf(path), { resolver: () => ({ input: bytesOf(path), identity: "disk.qcow2" }), identity: "disk.qcow2" }),
    { code: "corrupt", message: /leads back/ });
  const boom = new RangeError("boom");
  assert.throws(() => Image.open(bytesOf(path), { resolver: () => { throw boom; } }), boom);
  assert.throws(() => Image.open(bytesOf(path), { resolver: () => ({ input: 5 }) }), { code: "invalid_argument" });
  const alone = Image.open(bytesOf(path), { ignore_missing_files: true });
  assert.equal(alone.read(131072, 1)[0], 3);
  assert.throws(() => alone.read(0, 1), { code: "denied" });
});

test("an external data file is read, and edited in memory", (t) => {
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 -o data_file=data.raw disk.qcow2 4M && qemu-io -c 'write -P 6 1M 1M' disk.qcow2");
  const resolver = ({ role, name }) => (role === "data_file" ? { input: new FileSource(join(cwd, name)) } : undefined);
  const image = Image.open(bytesOf(cwd, "disk.qcow2"), { resolver });
  assert.deepEqual(image.read(0, 4 * MIB), qemuBytes(cwd, "disk.qcow2"));
  image.write(MIB, new Uint8Array([1]));
  assert.deepEqual([...image.read(MIB, 2)], [1, 6]);
  assert.equal(image.analyze().data_file.file_length, bytesOf(cwd, "data.raw").length);
  // A plan is no deed, and what is taken back is taken back in both files.
  const checkpoint = image.checkpoint();
  assert.equal(image.planDiscard({ offset: MIB, length: MIB }).before.data, MIB);
  assert.deepEqual([...image.read(MIB, 2)], [1, 6]);
  image.discard({ offset: MIB, length: 65536 });
  image.write(2 * MIB, new Uint8Array(70_000).map((_, index) => index * 7 + 8));
  assert.ok(image.editBytes > 70_000, `${image.editBytes}`);
  assert.deepEqual([image.read(MIB, 1)[0], image.read(2 * MIB, 1)[0]], [0, 8]);
  image.rollback(checkpoint);
  assert.deepEqual([...image.read(MIB, 2), image.read(2 * MIB, 1)[0]], [1, 6, 0]);
  // Both files are saved, and belong together.
  image.write(3 * MIB, new Uint8Array([5]));
  const expected = image.read(0, 4 * MIB);
  writeFileSync(join(cwd, "disk.qcow2"), image.save());
  writeFileSync(join(cwd, "data.raw"), image.saveDataFile());
  assert.deepEqual(qemuBytes(cwd, "disk.qcow2"), expected);
  run(cwd, "qemu-img check disk.qcow2");
  assert.throws(() => Image.create(MIB).saveDataFile(), { code: "invalid_argument", message: /data file/ });
});

test("encrypted images open with their key, and are written with it", (t) => {
  const cwd = made(t, "encrypted");
  const bytes = bytesOf(cwd, "disk.qcow2");
  const locked = Image.open(bytes);
  assert.throws(() => locked.read(65536, 1), { code: "encrypted" });
  assert.equal(locked.check().corruptions, 0);
  assert.throws(() => Image.open(bytes, { key: "wrong" }), { code: "wrong_key" });
  assert.throws(() => Image.open(bytes, { key: "abc", max_key_iterations: 10 }), { code: "limit" });
  for (const key of ["abc", new TextEncoder().encode("abc")]) {
    const image = Image.open(bytes, { key });
    const guest = image.read(0, MIB);
    assert.deepEqual([guest[65535], guest[65536], guest[65536 + 102_399], guest[65536 + 102_400]], [0, 7, 7, 0]);
    image.write(65537, new Uint8Array([8]));
    writeFileSync(join(cwd, "edited.qcow2"), image.save());
    run(cwd, "qemu-img convert --object secret,id=s,data=abc --image-opts " +
      "driver=qcow2,file.filename=edited.qcow2,encrypt.key-secret=s -O raw guest.raw");
    assert.deepEqual(bytesOf(cwd, "guest.raw").subarray(65535, 65539), new Uint8Array([0, 7, 8, 7]));
  }
});

test("partitions are found", () => {
  const image = Image.create(8 * MIB);
  assert.equal(image.partitions(), null);
  const record = new Uint8Array(512);
  // Bootable, type 0x83, first block 2048, 4096 blocks.
  record.set([0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0], 446);
  record.set([0x55, 0xaa], 510);
  image.write(0, record);
  const table = image.partitions();
  assert.equal(table.scheme, "mbr");
  const [{ start, size, type, bootable }] = table.partitions;
  assert.deepEqual({ start, size, type, bootable }, { start: MIB, size: 2 * MIB, type: "83", bootable: true });
});
