// What is refused, and how; and that hostile images cost bounded time and memory, and never a crash.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { errorCodes, FileSource, Image, isQcowError, limits, MemorySource, replay, Trace } from "qcowkit";
import { edited, made } from "../images.mjs";
import { bytesOf, folder, qcowkit, random, run } from "../qcowkit.mjs";

const MIB = 1 << 20;

test("every call of a closed image says that it is closed", () => {
  const image = Image.create(MIB);
  assert.equal(image.closed, false);
  image.close();
  image.free();
  image[Symbol.dispose]();
  assert.equal(image.closed, true);
  const calls = Object.entries(Object.getOwnPropertyDescriptors(Image.prototype)).filter(([name]) =>
    !["constructor", "close", "free", "closed", "raw"].includes(name));
  assert.ok(calls.length > 35, `${calls.length}`);
  const numbers = ["inspectGuest", "inspectHost", "rollback", "dropCheckpoint", "resize"];
  const args = { read: [0, 0], writeZeroes: [0, 0], hostBytes: [0, 0], discard: [[]], planDiscard: [[]], write: [0, new Uint8Array(1)], inspect: ["header"], fields: [0, 1, "header"] };
  for (const [name, { get, value }] of calls) {
    const call = () => (get ? get.call(image) : value.apply(image, args[name] ?? (numbers.includes(name) ? [0] : /napshot|itmap/.test(name) ? ["x"] : [])));
    assert.throws(call, (error) => {
      assert.deepEqual([error instanceof Error, error.name, error.code], [true, "QcowError", "closed"], name);
      return true;
    });
  }
});

test("numbers that JavaScript cannot hold, and options that do not exist, are refused by name", () => {
  const image = Image.create(MIB);
  const refused = [
    [() => image.read(2 ** 53, 1), "limit", /offset.*2\^53/],
    [() => image.read(0, 2 ** 60), "limit", /length.*2\^53/],
    [() => Image.create(2 ** 53), "limit", /size.*2\^53/],
    [() => image.read(-1, 1), "invalid_argument", /offset.*-1/],
    [() => image.read(0.5, 1), "invalid_argument", /offset.*0\.5/],
    [() => image.read(NaN, 1), "invalid_argument", /offset.*NaN/],
    [() => image.read(Infinity, 1), "invalid_argument", /Infinity/],
    [() => image.read(MIB, 1), "out_of_range", /./],
    [() => image.read(0, limits().max_read_bytes + 1), "limit", /max_read_bytes/],
    [() => image.write(MIB - 1, new Uint8Array(2)), "out_of_range", /./],
    [() => image.inspectHost(2 ** 53), "limit", /2\^53/],
    [() => image.discard({ offset: 0, length: 2 ** 53 }), "limit", /2\^53/],
    [() => image.discard([{ offset: 0, length: 1 }, { offset: MIB, length: 1 }]), "out_of_range", /./],
    [() => image.discard({ offset: 0, length: 1 }, { unreff: "always" }), "invalid_argument", /unreff/],
    [() => image.discard({ offset: 0, length: 1 }, { unref: "sometimes" }), "invalid_argument", /sometimes.*|always/],
    [() => Image.create(MIB, { cluster_size: 1000 }), "invalid_argument", /cluster/],
    [() => Image.create(MIB, { clustersize: 512 }), "invalid_argument", /clustersize/],
    [() => Image.create(MIB, { extended_l2: 1 }), "invalid_argument", /extended_l2/],
    [() => Image.create(MIB, 5), "invalid_argument", /object/],
    [() => image.map({ lenght: 1 }), "invalid_argument", /lenght/],
    [() => image.inspect("l3:0"), "invalid_argument", /l3:0/],
    [() => image.fields(0, 1, "l3_table"), "invalid_argument", /l3_table/],
    [() => image.check({ progress: 5 }), "invalid_argument", /progress/],
    [() => image.analyze({ request_sizes: 5 }), "invalid_argument", /request_sizes/],
    [() => image.planRepair({ relink: [{ host_offset: 1 }] }), "invalid_argument", /guest_offset/],
    [() => image.repair({ level: "leaks", relink: [{ host_offset: 1, guest_offset: 2 }] }), "invalid_argument", /relink/],
    [() => Image.open("disk.qcow2"), "invalid_argument", /ByteSource/],
    [() => Image.open({ size: -1, readAt() {} }), "invalid_argument", /size/],
    [() => Image.open({ size: 2 ** 53, readAt() {} }), "limit", /size/],
    [() => Trace.parse("hello"), "invalid_argument", /line 1/],
    [() => Trace.parse("", "vhd"), "invalid_argument", /vhd/],
    [() => Trace.churn({ fill_percent: 100 }), "invalid_argument", /fill/],
  ];
  for (const [call, code, message] of refused) {
    assert.throws(call, (error) => {
      assert.ok(isQcowError(error) && error instanceof Error, String(error));
      assert.ok(errorCodes().includes(error.code), error.code);
      assert.equal(error.code, code, error.message);
      assert.match(error.message, message);
      return true;
    }, String(call));
  }
  assert.equal(image.check().corruptions, 0);
  assert.deepEqual(Object.keys(limits()),
    ["max_offset", "max_read_bytes", "max_save_bytes", "max_rows", "max_trace_operations", "read_ahead_bytes"]);
});

test("an image beyond 2^53 is looked at, and not opened as a disk", (t) => {
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 -o cluster_size=2M disk.qcow2 16P");
  const bytes = bytesOf(cwd, "disk.qcow2");
  assert.throws(() => Image.open(bytes), { code: "limit", message: /2\^53/ });
  const image = Image.open(bytes, { tolerant: true });
  assert.equal(image.problem.code, "limit");
  assert.equal(image.inspect("header").value.fields.find(({ name }) => name === "size").raw, 2n ** 54n);
  assert.equal(image.audit().virtual_size, 2n ** 54n);
  assert.throws(() => image.read(0, 1), { code: "limit" });
});

test("edits are kept to their limit, and the image goes on", () => {
  const image = Image.create(64 * MIB, { max_edit_bytes: 4 * MIB });
  let written = 0;
  const bytes = new Uint8Array(MIB);
  crypto.getRandomValues(bytes.subarray(0, 65536));
  bytes.set(bytes.subarray(0, 65536), 65536);
  for (let index = 0; index < bytes.length; index += 1) {
    bytes[index] = index * 31;
  }
  assert.throws(() => {
    for (; written < 64; written += 1) {
      image.write(written * MIB, bytes);
    }
  }, (error) => error.code === "no_space" && /max_edit_bytes/.test(error.message));
  assert.ok(written >= 2 && written <= 4, `${written}`);
  assert.deepEqual(image.read(MIB, 100), bytes.slice(0, 100));
});

test("what a source throws is the cause, and what a progress function throws comes out as it is", (t) => {
  const cwd = made(t, "plain");
  const bytes = bytesOf(cwd, "disk.qcow2");
  const boom = new RangeError("boom");
  let broken = false;
  const source = {
    size: bytes.length,
    cached: false,
    readAt(offset, into) {
      if (broken) {
        throw boom;
      }
      into.set(bytes.subarray(offset, offset + into.length));
      return into.length;
    },
  };
  const image = Image.open(source);
  broken = true;
  assert.throws(() => image.read(0, 10), (error) => error.code === "storage" && error.cause === boom && typeof error.host_offset === "number");
  broken = false;
  assert.equal(image.read(0, 1)[0], 7, "the image goes on");
  assert.throws(() => image.check({ progress: () => { throw boom; } }), boom);
  assert.throws(() => image.analyze({ progress: () => { throw boom; } }), boom);
  assert.equal(image.check().corruptions, 0);
  const told = [];
  image.check({ progress: (part) => told.push(part) });
  assert.ok(told.length > 2 && told.at(-1) === 1 && told.every((part, index) => part >= (told[index - 1] ?? 0)));

  for (const [name, readAt, words] of [
    ["short", (_, into) => into.length - 1, /fewer bytes/],
    ["silent", () => undefined, /how many bytes/],
  ]) {
    assert.throws(() => Image.open({ size: 1 << 20, readAt }), (error) => error.code === "storage" && words.test(error.message), name);
  }
});

test("a source is read in pieces, each once, and ahead where reads go upwards", (t) => {
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 disk.qcow2 64G && qemu-io -c 'write -P 1 0 8M' -c 'write -P 1 32G 1M' disk.qcow2");
  const file = new FileSource(join(cwd, "disk.qcow2"));
  const reads = [];
  const source = { size: file.size, readAt: (offset, into) => (reads.push([offset, into.length]), file.readAt(offset, into)) };
  const image = Image.open(source);
  const opening = reads.reduce((sum, [, length]) => sum + length, 0);
  assert.ok(opening <= 5 * MIB && reads.length <= 6, `${opening} bytes in ${reads.length} reads`);
  reads.length = 0;
  image.check();
  const bytes = reads.reduce((sum, [, length]) => sum + length, 0);
  assert.ok(bytes < 6 * MIB, `a check of metadata alone took ${bytes} bytes`);
  reads.length = 0;
  image.check();
  assert.ok(reads.length <= 8, `${reads.length} reads for what was read before`);
  file.close();
});

test("bytes and every kind of source hold the same image", (t) => {
  const cwd = made(t, "zlib");
  const bytes = bytesOf(cwd, "disk.qcow2");
  const inputs = [bytes, bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length), new MemorySource(bytes),
    new FileSource(join(cwd, "disk.qcow2"))];
  const seen = inputs.map((input) => {
    const image = Image.open(input);
    return [image.read(0, image.virtualSize), image.map(), image.check(), image.save()];
  });
  for (const one of seen) {
    assert.deepEqual(one, seen[0]);
  }
});

test("what is no image is refused", () => {
  for (const bytes of [new Uint8Array(), new Uint8Array(100), new TextEncoder().encode("not an image at all")]) {
    assert.throws(() => Image.open(bytes), { name: "QcowError" });
  }
  assert.throws(() => Image.open(new Uint8Array(4096)), { code: "not_qcow2" });
  assert.equal(Image.audit(new Uint8Array(4096)).verdict, "danger");
});

test("a broken header is told with its place, an unknown feature by its number", (t) => {
  const bytes = bytesOf(made(t, "empty"), "disk.qcow2");
  // l1_table_offset, which must be aligned to a cluster.
  const broken = edited(bytes, 40, [0, 0, 0, 0, 0, 0, 0x30, 0x39]);
  assert.throws(() => Image.open(broken), (error) => error.code === "corrupt" && typeof error.structure === "string");
  const lost = edited(bytes, 48, [0, 0, 0, 0, 0, 1, 0, 1]);
  assert.throws(() => Image.open(edited(bytes, 72, [0, 0, 1, 0, 0, 0, 0, 0])), { code: "unsupported", message: /40/ });
  const image = Image.open(broken, { tolerant: true });
  assert.equal(image.problem.code, "corrupt");
  assert.match(image.inspect("header").value.refusal, /./);
  assert.throws(() => image.read(0, 1), { code: "corrupt" });
  assert.throws(() => image.repair(), { code: "corrupt" });
  const repaired = Image.open(lost, { tolerant: true });
  assert.equal(repaired.problem.code, "corrupt");
  assert.equal(repaired.repair().after.corruptions, 0);
  assert.equal(repaired.problem, undefined, "the repair made it a disk again");
  assert.equal(repaired.read(0, 1)[0], 0);
});

// Everything that looks at a file, none of which may crash whatever the file says.
function lookAtAll(bytes) {
  const tolerated = (call) => {
    try {
      return call();
    } catch (error) {
      // A panic would be a WebAssembly.RuntimeError.
      assert.equal(error.name, "QcowError", String(error.stack));
      return undefined;
    }
  };
  const image = Image.open(bytes, { tolerant: true });
  const calls = [
    () => image.info(), () => image.check(), () => image.analyze({ scan_zeroes: true }), () => image.audit({ deep: true }), () => image.clusters(),
    () => image.planRepair(), () => image.inspect("header"), () => image.inspect("l1"), () => image.inspect("l2:0"),
    () => image.inspect("refcount-table"), () => image.inspect("refcount-block:0"), () => image.inspect("snapshots"),
    () => image.inspect("bitmaps"), () => image.inspectGuest(0), () => image.inspectHost(0), () => image.regions(),
    () => image.fields(0, 65536, "header"), () => image.map({ length: 64 * MIB }), () => image.snapshots(), () => image.bitmaps(),
    () => image.read(0, 4096), () => image.partitions(), () => image.write(0, new Uint8Array(70_000).fill(1)),
    () => image.discard({ offset: 0, length: 65536 }), () => image.createSnapshot("x"), () => image.patch(),
    () => image.repair(), () => image.check(),
  ];
  calls.forEach(tolerated);
}

test("headers and tables of noise give errors or answers, never a crash", (t) => {
  for (const name of ["snapshots", "zlib", "subclusters", "encrypted"]) {
    const bytes = bytesOf(made(t, name), "disk.qcow2");
    const next = random(name.length * 77);
    const start = Date.now();
    for (let round = 0; round < 25; round += 1) {
      const noisy = bytes.slice();
      for (let change = 0; change < 6; change += 1) {
        const region = next(3);
        const offset = region === 0 ? 4 + next(140) : region === 1 ? next(0x60000) & ~7 : next(bytes.length);
        noisy[offset + next(8)] = next(2) ? next(256) : 255;
      }
      lookAtAll(noisy);
    }
    assert.ok(Date.now() - start < 240_000, "bounded time");
  }
});

// Images that broke readers of qcow2; what made each stands beside it in core/tests.
const HOSTILE = [
  ["an L1 table of 2^31 entries", (view) => view.setUint32(36, 0x7fffffff)],
  ["a virtual disk of 2^63 bytes", (view) => view.setBigUint64(24, 2n ** 63n - 512n)],
  ["a refcount table of 2^31 clusters", (view) => view.setUint32(56, 0x7fffffff)],
  ["65536 snapshots that are not there", (view) => { view.setUint32(60, 65536); view.setBigUint64(64, 0x50000n); }],
  ["clusters of 2^63 bytes", (view) => view.setUint32(20, 63)],
  ["refcounts of 2^31 bits", (view) => view.setUint32(96, 31)],
  ["a header of 4 GiB", (view) => view.setUint32(100, 0xfffffff8)],
  ["an L1 table that is its own L2 table", (view) => view.setBigUint64(0x30000, 0x8000000000030000n)],
  ["a refcount table that is its own block", (view) => view.setBigUint64(0x10000, 0x10000n)],
  ["a backing file name of 4 GiB", (view) => { view.setBigUint64(8, 0x200n); view.setUint32(16, 0xffffffff); }],
  ["an extension of 4 GiB", (view) => { view.setUint32(104, 0x6803f857); view.setUint32(108, 0xffffffff); }],
];

for (const [what, damage] of HOSTILE) {
  test(`${what}: bounded time and memory`, (t) => {
    const bytes = bytesOf(made(t, "plain"), "disk.qcow2");
    damage(new DataView(bytes.buffer, bytes.byteOffset));
    const start = Date.now();
    lookAtAll(bytes);
    assert.ok(Date.now() - start < 60_000, `${Date.now() - start} ms`);
  });
}

// What fuzzing once found: images behind two bytes that say how they are to be repaired, and traces.
const CRASHERS = fileURLToPath(new URL("../../../fuzz/crashers/", import.meta.url));

test("images that fuzzing found: bounded time and memory", () => {
  const start = Date.now();
  let images = 0;
  for (const name of readdirSync(join(CRASHERS, "repair"))) {
    const bytes = new Uint8Array(readFileSync(join(CRASHERS, "repair", name)));
    // An odd first byte: damage to a sound image, which is made up there.
    if (bytes[0] % 2 === 0) {
      images += 1;
      lookAtAll(bytes.slice(2));
    }
  }
  assert.ok(images > 0);
  assert.ok(Date.now() - start < 60_000, `${Date.now() - start} ms`);
});

test("traces that fuzzing found, and noise, are answered or refused by their line", () => {
  const start = Date.now();
  const found = readdirSync(join(CRASHERS, "trace")).map((name) => new Uint8Array(readFileSync(join(CRASHERS, "trace", name))));
  const next = random(5);
  found.push(...Array.from({ length: 20 }, () => Uint8Array.from({ length: 300 }, () => next(256))));
  found.push(new TextEncoder().encode("operation,offset,length,detail\nwrite,9007199254740991,18446744073709551615,\n"));
  for (const bytes of found) {
    for (const format of [undefined, "csv", "qemu-io", "fio", "blkparse"]) {
      try {
        const trace = Trace.parse(bytes, format);
        trace.summary();
        trace.text("qemu-io").length;
        replay(trace, { size: Math.max(trace.end, MIB) }, { configs: [{}], samples: 2 });
        trace.free();
      } catch (error) {
        assert.equal(error.name, "QcowError", String(error.stack));
      }
    }
  }
  assert.ok(Date.now() - start < 60_000, `${Date.now() - start} ms`);
});

test("an L2 table that every L1 entry shares costs no more than one", (t) => {
  // 16 TiB of address space through one table: the map is answered, or refused by a named limit.
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 disk.qcow2 16T && qemu-io -c 'write -P 1 0 64k' disk.qcow2");
  const bytes = bytesOf(cwd, "disk.qcow2");
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const l1 = Number(view.getBigUint64(40));
  for (let index = 1; index < view.getUint32(36); index += 1) {
    view.setBigUint64(l1 + index * 8, view.getBigUint64(l1));
  }
  const start = Date.now();
  lookAtAll(bytes);
  assert.ok(Date.now() - start < 60_000, `${Date.now() - start} ms`);
});

test("of an image whose backing file is missing, the map tells what the image itself holds", (t) => {
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 gone.qcow2 8M && qemu-img create -f qcow2 -b gone.qcow2 -F qcow2 disk.qcow2");
  run(cwd, "qemu-io -c 'write -P 1 1M 128k' -c 'write -z 2M 64k' disk.qcow2");
  const image = Image.open(bytesOf(cwd, "disk.qcow2"), { tolerant: true });
  assert.throws(() => image.map(), { code: "denied" });
  const rows = image.map({ local: true });
  assert.equal(rows.reduce((sum, { length }) => sum + length, 0), 8 * MIB);
  const sum = (wanted) => rows.filter(wanted).reduce((all, { length }) => all + length, 0);
  assert.equal(sum(({ present, data }) => present && data), 128 << 10);
  assert.equal(sum(({ present, zero }) => present && zero), 64 << 10);
  assert.ok(rows.every(({ depth }) => depth === 0));
});
