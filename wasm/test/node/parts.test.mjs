// The module in pieces: how large each is, when each is loaded, and what happens when one cannot be.

import assert from "node:assert/strict";
import { cpSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { brotliCompressSync } from "node:zlib";
import { Image, replay, Trace } from "qcowkit";
import { loadedParts } from "../../dist/parts.js";
import { made } from "../images.mjs";
import { bytesOf, folder, qemuBytes, qemuCheck } from "../qcowkit.mjs";

const FOLDER = fileURLToPath(new URL("../../", import.meta.url));
const PKG = join(FOLDER, "pkg");
const FILES = readdirSync(PKG).filter((name) => name.endsWith(".wasm"));
const FIRST = "qcowkit_bg.wasm";
const MIB = 1 << 20;

// What was promised for each file, and what all take together today, rounded up, so that they do not grow unnoticed.
const MOST = 350_000;
const MOST_PACKED = 120_000;
const MOST_IN_ALL = 935_000;
const MOST_PACKED_IN_ALL = 348_000;

test("each file of the module keeps its size", (t) => {
  const sizes = FILES.map((name) => {
    const raw = readFileSync(join(PKG, name));
    // Quality 11 is the default.
    return { name, raw: raw.length, packed: brotliCompressSync(raw).length };
  });
  for (const { name, raw, packed } of sizes) {
    t.diagnostic(`${name}: ${raw} bytes, ${packed} after brotli`);
    assert.ok(raw <= MOST && packed <= MOST_PACKED, `${name}: ${raw} bytes, ${packed} after brotli`);
  }
  const sum = (key) => sizes.reduce((sum, size) => sum + size[key], 0);
  assert.ok(sum("raw") <= MOST_IN_ALL, `${sum("raw")} bytes`);
  assert.ok(sum("packed") <= MOST_PACKED_IN_ALL, `${sum("packed")} bytes after brotli`);
});

test("parts ask for nothing but what the first module gives them", () => {
  const parts = FILES.filter((name) => name !== FIRST);
  assert.ok(parts.length > 1);
  const from = parts.flatMap((name) => WebAssembly.Module.imports(new WebAssembly.Module(readFileSync(join(PKG, name)))));
  assert.equal(new Set(from.map(({ module }) => module)).size, 1);
  assert.match(from[0].module, /^[0-9a-f]{8}$/);
});

test("each part is loaded by what is first asked of it, and by nothing else", (t) => {
  const plain = bytesOf(made(t, "plain"), "disk.qcow2");
  const packed = bytesOf(made(t, "zstd"), "disk.qcow2");
  const secret = bytesOf(made(t, "encrypted"), "disk.qcow2");
  assert.deepEqual(loadedParts(), []);
  const image = Image.open(plain);
  image.read(0, 4 * MIB);
  image.map();
  image.write(10 * MIB + 5, new Uint8Array(200_000).fill(9));
  image.writeZeroes(3 * MIB, 100_000);
  const before = image.checkpoint();
  image.write(0, new Uint8Array(MIB).fill(3));
  image.rollback(before);
  image.flush();
  image.save();
  const saved = image.parts().find(({ source }) => source === "edits");
  image.hostBytes(saved.offset, 1);
  image.patch();
  image.close();
  assert.deepEqual(loadedParts(), []);
  const compressed = Image.open(packed);
  assert.deepEqual(loadedParts(), []);
  const locked = Image.open(secret);
  assert.deepEqual(loadedParts(), []);
  assert.throws(() => locked.read(65536, 1), { code: "encrypted" });
  assert.deepEqual(loadedParts(), []);
  const steps = [
    [() => compressed.read(0, 1), ["codecs"]],
    [() => Image.open(secret, { key: "abc" }).read(65536, 1), ["crypto"]],
    [() => Image.open(plain).planDiscard({ offset: 0, length: MIB }, { unref: "retain_unshared" }), ["change"]],
    [() => compressed.check(), ["walk", "check"]],
    [() => compressed.info(), ["look"]],
    [() => Trace.churn({ size: 2 ** 28, operations: 10 }), ["lab"]],
  ];
  for (const [call, parts] of steps) {
    const there = loadedParts();
    call();
    assert.deepEqual(loadedParts().filter((name) => !there.includes(name)).sort(), parts.sort(), String(call));
  }
  assert.deepEqual(loadedParts().map((name) => `qcowkit_${name}.wasm`).sort(), FILES.filter((name) => name !== FIRST).sort());
});

// A package of its own, with state of its own, whose files can be taken away.
async function copied(t, entry = "node") {
  const cwd = folder(t);
  for (const name of ["package.json", "pkg", "dist"]) {
    cpSync(join(FOLDER, name), join(cwd, name), { recursive: true });
  }
  const load = (name) => import(join(cwd, "dist", `${name}.js`));
  const file = (name) => join(cwd, "pkg", `qcowkit_${name}.wasm`);
  return {
    qcowkit: await load(entry),
    loaded: (await load("parts")).loadedParts,
    take: (name) => renameSync(file(name), `${file(name)}.gone`),
    giveBack: (name) => renameSync(`${file(name)}.gone`, file(name)),
    file,
  };
}

const notLoaded = (name, why = /ENOENT/) => (error) => {
  assert.deepEqual([error instanceof Error, error.name, error.code], [true, "QcowError", "not_loaded"]);
  assert.match(error.message, new RegExp(`'${name}'`));
  assert.match(error.message, why);
  assert.ok(error.cause instanceof Error);
  return true;
};

test("a part that cannot be loaded fails the call that needs it, and nothing else", async (t) => {
  const { qcowkit, loaded, take, giveBack } = await copied(t);
  ["check", "change", "look", "lab"].forEach(take);
  const image = qcowkit.Image.open(bytesOf(made(t, "plain"), "disk.qcow2"));
  const calls = [
    ["check", () => image.check()],
    ["check", () => image.repair()],
    ["change", () => qcowkit.Image.create(MIB)],
    ["change", () => image.createSnapshot("a name")],
    ["look", () => image.analyze({ runs: 10 })],
    ["look", () => image.inspect("header")],
    // The lab needs it too.
    ["change", () => qcowkit.Trace.churn({ size: 2 ** 28, operations: 10 })],
  ];
  for (let round = 0; round < 100; round += 1) {
    for (const [part, call] of calls) {
      assert.throws(call, notLoaded(part));
    }
  }
  // The one that they need had been found.
  assert.deepEqual(loaded(), ["codecs", "walk"]);
  image.write(5, new Uint8Array([1, 2, 3]));
  assert.deepEqual([...image.read(4, 5)], [7, 1, 2, 3, 7]);
  ["check", "change", "look"].forEach(giveBack);
  assert.throws(() => qcowkit.Trace.churn({ size: 2 ** 28, operations: 10 }), notLoaded("lab"));
  giveBack("lab");
  assert.equal(image.check().corruptions, 0);
  assert.equal(image.createSnapshot("a name"), "1");
  assert.equal(image.info()["virtual-size"], 64 * MIB);
  assert.ok(qcowkit.Trace.churn({ size: 2 ** 28, operations: 10 }).length >= 10);
  assert.equal(qemuCheck(folder(t), image.save()), 0);
});

test("codecs and ciphers that cannot be loaded fail a call in its midst, and the image stays as it was", async (t) => {
  const { qcowkit, take, giveBack } = await copied(t);
  ["codecs", "crypto"].forEach(take);
  const cwd = made(t, "zlib");
  const expected = qemuBytes(cwd, "disk.qcow2");
  const image = qcowkit.Image.open(bytesOf(cwd, "disk.qcow2"));
  const secret = bytesOf(made(t, "encrypted"), "disk.qcow2");
  for (let round = 0; round < 100; round += 1) {
    assert.throws(() => image.read(0, 1), notLoaded("codecs"));
    // A part of a packed cluster: the rest has to be unpacked.
    assert.throws(() => image.write(2 * MIB + 5, new Uint8Array([1])), notLoaded("codecs"));
    assert.throws(() => qcowkit.Image.open(secret, { key: "abc" }), notLoaded("crypto"));
  }
  image.write(3 * MIB, new Uint8Array(65536).fill(6));
  expected.fill(6, 3 * MIB, 3 * MIB + 65536);
  ["codecs", "crypto"].forEach(giveBack);
  assert.deepEqual(image.read(0, 4 * MIB), expected);
  image.write(2 * MIB + 5, new Uint8Array([1]));
  expected[2 * MIB + 5] = 1;
  assert.equal(qemuCheck(cwd, image.save()), 0);
  assert.deepEqual(qemuBytes(cwd, "checked.qcow2"), expected);
  assert.equal(qcowkit.Image.open(secret, { key: "abc" }).read(65536, 1)[0], 7);
});

test("a file that is no part, or a part of another build, is refused", async (t) => {
  const { qcowkit, file, loaded } = await copied(t);
  const whole = readFileSync(file("change"));
  const pool = WebAssembly.Module.imports(new WebAssembly.Module(whole))[0].module;
  const other = Buffer.from(whole.toString("latin1").replaceAll(pool, "01234567"), "latin1");
  for (const [bytes, why] of [[Buffer.from("<!doctype html>"), /magic|version/], [whole.subarray(0, 1000), /./], [other, /01234567/]]) {
    writeFileSync(file("change"), bytes);
    assert.throws(() => qcowkit.Image.create(MIB), notLoaded("change", why));
  }
  assert.deepEqual(loaded(), []);
  writeFileSync(file("change"), whole);
  assert.equal(qcowkit.Image.create(MIB).virtualSize, MIB);
});

test("initSync takes the parts, and two copies of the package keep theirs apart", async (t) => {
  const [one, two] = [await copied(t, "web"), await copied(t, "web")];
  const bytes = (name) => readFileSync(one.file(name));
  one.qcowkit.initSync({ module: bytes("bg") });
  assert.equal(one.qcowkit.version(), two.qcowkit.initSync(new WebAssembly.Module(bytes("bg"))) && two.qcowkit.version());
  assert.throws(() => one.qcowkit.Image.create(MIB), notLoaded("change", /partsReady|initSync/));
  assert.throws(() => one.qcowkit.initSync({ module: bytes("bg"), parts: { chek: bytes("check") } }), /'chek'.*check/);
  assert.throws(() => one.qcowkit.initSync({ module: bytes("bg"), parts: { check: new Uint8Array(9) } }), notLoaded("check", /./));
  one.qcowkit.initSync({ module: bytes("bg"), parts: { change: bytes("change"), walk: new WebAssembly.Module(bytes("walk")) } });
  assert.deepEqual([one.loaded(), two.loaded()], [[], []]);
  const image = one.qcowkit.Image.create(MIB);
  assert.deepEqual([one.loaded(), two.loaded()], [["change"], []]);
  assert.throws(() => image.check(), notLoaded("check", /initSync/));
  two.qcowkit.initSync({ module: bytes("bg"), parts: { change: bytes("change") } });
  const other = two.qcowkit.Image.create(2 * MIB);
  image.write(0, new Uint8Array([1]));
  other.write(0, new Uint8Array([2]));
  assert.deepEqual([image.read(0, 2)[0], other.read(0, 2)[0], image.virtualSize, other.virtualSize], [1, 2, MIB, 2 * MIB]);
});

test("the lab plays on what another part makes", () => {
  const trace = Trace.churn({ size: 2 ** 26, operations: 50 });
  assert.equal(replay(trace, { size: 2 ** 26 }, { configs: [{}] }).runs.length, 1);
});
