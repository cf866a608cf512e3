import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import test from "node:test";
import { version } from "qcowkit";

const PKG = new URL("../../pkg/", import.meta.url);
const MODULE = new URL("qcowkit_bg.wasm", PKG);

test("the version is the package's", () => {
  const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  assert.equal(version(), manifest.version);
});

test("the module asks its host for nothing but JavaScript's own objects", () => {
  const module = new WebAssembly.Module(readFileSync(MODULE));
  const names = WebAssembly.Module.imports(module).map(({ name }) => name);
  for (const name of names) {
    assert.doesNotMatch(name, /fetch|crypto|random|time|date|console/i);
  }
});

test("the module has no panics with words: no messages, no places in source files", () => {
  const files = readdirSync(PKG).filter((name) => name.endsWith(".wasm"));
  const text = files.map((name) => readFileSync(new URL(name, PKG)).toString("latin1")).join("\n");
  // `unwrap_throw` of wasm-bindgen is no panic: it throws.
  for (const words of [/panicked at/, /called `(Option|Result)::(unwrap|expect)(_err)?\(/, /index out of bounds/, /slice index/, /attempt to \w+ with overflow/, /unreachable code/, /(src|library)\/[\w/]+\.rs/]) {
    assert.ok(!words.test(text), String(words));
  }
});
