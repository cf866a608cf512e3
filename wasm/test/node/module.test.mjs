import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { brotliCompressSync } from "node:zlib";
import { version } from "qcowkit";

const MODULE = new URL("../../pkg/qcowkit_bg.wasm", import.meta.url);

test("the version is the package's", () => {
  const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  assert.equal(version(), manifest.version);
});

test("the module stays within its budget of bytes", (t) => {
  const raw = readFileSync(MODULE);
  const packed = brotliCompressSync(raw);
  t.diagnostic(`${raw.length} bytes, ${packed.length} after brotli`);
  assert.ok(raw.length <= 350_000, `${raw.length} bytes`);
  assert.ok(packed.length <= 120_000, `${packed.length} bytes after brotli`);
});

test("the module asks its host for nothing but JavaScript's own objects", () => {
  const module = new WebAssembly.Module(readFileSync(MODULE));
  const names = WebAssembly.Module.imports(module).map(({ name }) => name);
  for (const name of names) {
    assert.doesNotMatch(name, /fetch|crypto|random|time|date|console/i);
  }
});
