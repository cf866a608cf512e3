// The package as people get it: packed, installed elsewhere, imported by its name.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL("../../", import.meta.url));

test("the packed package installs and loads by each of its entries", () => {
  const elsewhere = mkdtempSync(join(tmpdir(), "qcowkit-package-"));
  const npm = (...parameters) =>
    execFileSync("npm", [...parameters, "--silent", "--offline"], { cwd: elsewhere, encoding: "utf8" }).trim();
  try {
    const name = npm("pack", FOLDER);
    writeFileSync(join(elsewhere, "package.json"), "{}");
    npm("install", `./${name}`);
    const program = `
      import { readFileSync } from "node:fs";
      import * as node from "qcowkit";
      import * as web from "qcowkit/web";
      web.initSync({ module: readFileSync(new URL(import.meta.resolve("qcowkit/qcowkit.wasm"))) });
      import.meta.resolve("qcowkit/bundler");
      console.log(node.version() === web.version());`;
    writeFileSync(join(elsewhere, "program.mjs"), program);
    const printed = execFileSync(process.execPath, ["program.mjs"], { cwd: elsewhere, encoding: "utf8" });
    assert.equal(printed.trim(), "true");
  } finally {
    rmSync(elsewhere, { recursive: true, force: true });
  }
});
