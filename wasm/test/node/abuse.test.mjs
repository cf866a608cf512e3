// Arguments that no type allows, and calls out of calls: an `Error` each, and the module goes on.

import assert from "node:assert/strict";
import test from "node:test";
import { errorCodes, Image, isQcowError, MemorySource, Replay, replay, Trace } from "qcowkit";
import { bytesOf } from "../qcowkit.mjs";
import { made } from "../images.mjs";

const MIB = 2 ** 20;
const BOOM = new RangeError("boom");

function detached() {
  const bytes = new Uint8Array(16);
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
  return bytes;
}

// A proxy throws wherever it is looked at.
const hostile = new Proxy({}, { get() { throw BOOM; }, ownKeys() { throw BOOM; }, has() { throw BOOM; }, getPrototypeOf() { throw BOOM; } });
const revoked = Proxy.revocable([], {});
revoked.revoke();

const ODD = [
  undefined, null, -1, 0.5, NaN, Infinity, -Infinity, 2 ** 53, 2 ** 64, 1e300, "5", "x", "", true, 5n, 2n ** 70n, Symbol("s"), () => 5,
  [], [5], {}, { length: 5 }, { length: 4e9 }, { length: -1 }, { length: NaN }, new Date(NaN), new Map(), Object.create(null),
  detached(), detached().buffer, new Uint16Array(3), new DataView(new ArrayBuffer(8)), new Float64Array([NaN]),
  new SharedArrayBuffer(16), Promise.resolve(1), hostile, revoked.proxy,
  Object.assign([1], { [Symbol.iterator]: () => { throw BOOM; } }), { get offset() { throw BOOM; }, get size() { throw BOOM; } },
];

function image() {
  const made = Image.create(4 * MIB);
  made.write(0, new Uint8Array(100_000).fill(7));
  made.createSnapshot("a");
  made.addBitmap("b");
  return made;
}

// Calls with something odd: an answer, or an error that is of this package, or of what was odd.
function tried(what, call) {
  try {
    const result = call();
    if (typeof result?.close === "function") {
      result.close();
    }
  } catch (error) {
    assert.ok(error instanceof Error, what);
    assert.ok(!(error instanceof WebAssembly.RuntimeError), `${what}: ${error.stack}`);
    if (isQcowError(error)) {
      assert.ok(errorCodes().includes(error.code), `${what}: ${error.code}`);
      assert.ok(error.message.length > 10, what);
    } else {
      assert.ok(error === BOOM || /revoked|detached/.test(error.message), `${what}: ${error.stack}`);
    }
  }
}

const METHODS = {
  read: [0, 10], write: [0, new Uint8Array(3)], writeZeroes: [0, 100, {}], discard: [{ offset: 0, length: 65536 }, {}],
  planDiscard: [{ offset: 0, length: 65536 }, {}], resize: [5 * MIB, {}], map: [{}], clusters: [{}], clusterRuns: [{}], analyze: [{}],
  inspect: ["header", {}], inspectGuest: [0], inspectHost: [0], fields: [0, 100, "header", {}], hostBytes: [0, 10], check: [{}],
  planRepair: [{}], repair: [{}], audit: [{}], createSnapshot: ["x", {}], applySnapshot: ["a"], deleteSnapshot: ["a"], openSnapshot: ["a"],
  addBitmap: ["c", {}], removeBitmap: ["b"], bitmapRanges: ["b"], rollback: [1], dropCheckpoint: [1],
  info: [], partitions: [], regions: [], snapshots: [], bitmaps: [], checkpoint: [], flush: [], parts: [], patch: [], save: [], saveDataFile: [],
};

// Options of each method, by the place of the object among its arguments.
const OPTIONS = {
  writeZeroes: [2, "unmap"], discard: [1, "discard", "unref", "retained_op", "pass_discard_request"], resize: [1, "shrink", "preallocation"],
  map: [0, "offset", "length", "max_rows"], clusters: [0, "host_offset", "length", "max_rows", "progress"],
  analyze: [0, "scan_zeroes", "request_sizes", "progress"], inspect: [1, "first", "count", "skip_empty"],
  repair: [0, "level", "relink", "progress"], audit: [0, "deep", "max_virtual_size"], createSnapshot: [1, "date"], addBitmap: [1, "granularity"],
};

test("every method of an image, with every kind of wrong argument", () => {
  const own = Object.getOwnPropertyNames(Image.prototype).filter((name) => typeof Object.getOwnPropertyDescriptor(Image.prototype, name).value === "function");
  assert.deepEqual(own.filter((name) => name !== "constructor").toSorted(), Object.keys(METHODS).toSorted(), "each is tried");
  for (const [method, usual] of Object.entries(METHODS)) {
    let one = image();
    const call = (what, args) => {
      tried(`${method} ${what}`, () => one[method](...args));
      // Whatever it did to this image, it is no image that nobody can use any more.
      tried(`${method} ${what}, then a read`, () => assert.equal(one.read(0, 10).length, 10));
      if (one.virtualSize !== 4 * MIB || one.snapshots().length !== 1) {
        one.close();
        one = image();
      }
    };
    for (const [place] of usual.entries()) {
      ODD.forEach((odd, index) => call(`argument ${place}, odd ${index}`, usual.with(place, odd)));
    }
    const [place, ...names] = OPTIONS[method] ?? [];
    for (const name of names) {
      ODD.forEach((odd, index) => call(`option ${name}, odd ${index}`, usual.with(place, { [name]: odd })));
    }
    one.close();
    tried(`${method}, closed`, () => assert.throws(() => one[method](...usual), { name: "QcowError", code: "closed" }));
  }
});

test("creating, opening and the lab, with every kind of wrong argument", () => {
  const bytes = image().save();
  const trace = Trace.churn({ size: 64 * MIB, operations: 50 });
  const disk = { size: 64 * MIB };
  const stepped = new Replay(trace, disk);
  const options = ["read_only", "tolerant", "resolver", "ignore_missing_files", "identity", "key", "max_key_iterations", "detect_zeroes", "allocation",
    "max_edit_bytes", "compat", "cluster_size", "refcount_bits", "extended_l2", "compression_type", "backing_file", "backing_format", "preallocation"];
  const named = (resolver) => Image.create(MIB, { backing_file: "b", backing_format: "raw", resolver });
  for (const [index, odd] of ODD.entries()) {
    const calls = [
      () => Image.create(odd), () => Image.create(MIB, odd), () => Image.open(odd), () => Image.open(bytes, odd), () => Image.audit(odd),
      () => Image.audit(bytes, odd), () => new MemorySource(odd), () => Image.open({ size: odd, readAt: () => 1 }),
      () => Image.open({ size: MIB, readAt: odd }), () => Image.open({ size: MIB, readAt: () => odd }),
      () => Image.open({ size: MIB, cached: odd, readAt: () => 1 }), () => named(() => odd), () => named(() => ({ input: odd })),
      ...options.map((name) => () => Image.create(MIB, { [name]: odd })),
      () => Trace.parse(odd), () => Trace.parse("write 0 65536\n", odd), () => Trace.churn(odd), () => Trace.churn({ size: odd, operations: 9 }),
      () => Trace.churn({ trim: odd, operations: 9 }), () => trace.operations(odd, 3), () => trace.operations(0, odd), () => trace.text(odd),
      () => replay(odd, disk), () => replay(trace, odd), () => replay(trace, { size: odd }), () => replay(trace, disk, odd),
      () => replay(trace, disk, { configs: odd }), () => replay(trace, disk, { configs: [odd] }), () => replay(trace, disk, { progress: odd }),
      () => new Replay(odd, disk), () => new Replay(trace, odd), () => new Replay(trace, disk, odd), () => stepped.step(odd),
      () => stepped.frame(odd), () => stepped.frame({ cells: odd }),
    ];
    calls.forEach((call) => tried(`odd ${index}: ${call}`, call));
  }
  assert.equal(Image.open(bytes).read(0, 1)[0], 7);
  assert.equal(trace.length, replay(trace, disk).trace.operations);
});

test("nothing is taken for what it is not", () => {
  const one = image();
  const wrong = { name: "QcowError", code: "invalid_argument" };
  for (const odd of [null, "5", [], true, {}]) {
    assert.throws(() => one.read(odd, 1), wrong);
    assert.throws(() => one.resize(odd), wrong);
  }
  for (const odd of ["x", [1, 2], { length: 5 }, new Uint16Array(2), detached(), new ArrayBuffer(2)]) {
    assert.throws(() => one.write(0, odd), wrong);
  }
  assert.throws(() => one.createSnapshot(5), wrong);
  assert.throws(() => one.inspect({ length: 1 }), wrong);
  assert.equal(one.read(0, 1)[0], 7, "nothing was written");
  assert.equal(one.snapshots().length, 1);
  // Options without a prototype are options too.
  assert.throws(() => one.map(Object.assign(Object.create(null), { lenght: 1 })), { ...wrong, message: /lenght/ });
});

test("a call out of a call is refused, and changes nothing", (t) => {
  const bytes = bytesOf(made(t, "plain"), "disk.qcow2");
  const other = Image.create(2 ** 40);
  let call;
  const source = {
    size: bytes.length,
    cached: false,
    readAt(offset, into) {
      const length = into.length;
      call?.();
      // As one may who does not expect `into` to go away.
      for (let index = 0; index < length; index += 1) {
        into[index] = bytes[offset + index];
      }
      return length;
    },
  };
  const one = Image.open(source);
  const inside = [() => one.read(0, 1), () => one.close(), () => one.virtualSize, () => other.read(0, 1),
    () => Image.create(2 ** 40).write(0, new Uint8Array(64 * MIB).fill(1)), () => Image.open(bytes), () => Trace.parse("write 0 512\n"),
    () => Trace.churn({ operations: 1 })];
  for (const what of inside) {
    call = what;
    assert.throws(() => one.read(0, MIB), (error) => error.code === "storage" && error.cause.code === "locked", String(what));
    // Those who catch it have spoilt nothing.
    call = () => assert.throws(what, { code: "locked" });
    assert.equal(one.read(0, MIB)[1], 7, String(what));
  }
  call = undefined;
  // A progress function, the getter of an option: the other image may be used, this one not.
  for (const what of [() => one.read(0, 1), () => one.close(), () => one.closed]) {
    assert.throws(() => one.check({ progress: what }), { code: "locked" });
    assert.throws(() => one.check({ get progress() { return what(); } }), { code: "locked" });
  }
  assert.equal(one.check({ progress: () => other.read(0, 1) }).corruptions, 0);
  assert.equal(one.read(0, 1)[0], 7);
  one.close();
});

test("a source that fills its bytes too late, or gives them away, harms nothing", async (t) => {
  const bytes = bytesOf(made(t, "plain"), "disk.qcow2");
  const one = Image.open(bytes);
  const kept = [];
  const keeping = Image.open({
    size: bytes.length,
    cached: false,
    readAt(offset, into) {
      kept.push(into);
      into.set(bytes.subarray(offset, offset + into.length));
      return into.length;
    },
  });
  keeping.check();
  kept.forEach((into) => into.fill(255));
  // As people write it who did not see that it has to be synchronous.
  const late = { size: bytes.length, readAt: async (_offset, into) => { await Promise.resolve(); into.fill(255); return into.length; } };
  assert.throws(() => Image.open(late), { code: "storage", message: /how many bytes/ });
  const given = { size: bytes.length, readAt: (_offset, into) => { structuredClone(into.buffer, { transfer: [into.buffer] }); return 0; } };
  assert.throws(() => Image.open(given), { code: "storage" });
  await new Promise((resolve) => setTimeout(resolve));
  for (const image of [one, keeping, Image.open(bytes)]) {
    assert.equal(image.check().corruptions, 0);
    assert.equal(image.read(0, 3 * MIB)[5], 7);
  }
});

test("what throws where it is looked at comes out as it is, and leaves the image usable", () => {
  const one = image();
  for (const options of [hostile, { get progress() { throw BOOM; } }, new Proxy({}, { ownKeys() { throw BOOM; } })]) {
    assert.throws(() => one.check(options), BOOM);
    assert.throws(() => one.analyze(options), BOOM);
  }
  for (const request_sizes of [revoked.proxy, Object.assign([1], { [Symbol.iterator]: () => { throw BOOM; } })]) {
    assert.throws(() => one.analyze({ request_sizes }), (error) => error === BOOM || /revoked/.test(error.message));
  }
  assert.throws(() => Image.open({ get size() { throw BOOM; }, readAt() {} }), BOOM);
  assert.throws(() => Image.open({ size: MIB, get cached() { throw BOOM; }, readAt() {} }), BOOM);
  assert.equal(one.read(0, 1)[0], 7);
});

test("an array that the engine has no room for is its own error, and leaves the image usable", () => {
  const one = image();
  const { Uint8Array: real } = globalThis;
  globalThis.Uint8Array = class extends real {
    constructor() {
      super(0);
      throw BOOM;
    }
  };
  try {
    assert.throws(() => one.save(), BOOM);
  } finally {
    globalThis.Uint8Array = real;
  }
  assert.equal(one.read(0, 1)[0], 7);
  assert.equal(one.save().length, one.fileLength);
});

test("a backing file may be an ArrayBuffer, as an image may", () => {
  const base = new Uint8Array(MIB).fill(9).buffer;
  const top = Image.create(MIB, { backing_file: "base.raw", backing_format: "raw", resolver: () => ({ input: base }) });
  assert.equal(top.read(5, 1)[0], 9);
});

test("more bytes than the module's memory has room for are refused, and large ones are written in pieces", () => {
  // Never touched, so that they take no memory here.
  assert.throws(() => Image.open(new Uint8Array(2.3e9)), { code: "no_space" });
  assert.throws(() => Image.open(new Uint8Array(2 ** 32)), { code: "limit", message: /2\^32/ });
  const one = Image.create(2 ** 34);
  assert.throws(() => one.write(0, new Uint8Array(2 ** 32)), { code: "limit" });
  assert.throws(() => one.write(2 ** 34 - 1, new Uint8Array(2e9)), { code: "out_of_range" });
  // Over three pieces, not aligned to anything.
  const bytes = new Uint8Array(40 * MIB + 77).map((_, index) => (index * 31) % 251);
  one.write(5 * MIB + 13, bytes);
  assert.deepEqual(one.read(5 * MIB + 13, bytes.length), bytes);
  assert.deepEqual([one.read(5 * MIB + 12, 1)[0], one.read(45 * MIB + 90, 1)[0]], [0, 0]);
  assert.equal(one.check().corruptions + one.check().leaks, 0);
  one.write(0, new Uint8Array(0));
});
