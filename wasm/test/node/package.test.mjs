// The package as people get it: packed, installed elsewhere, imported by its name.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL("../../", import.meta.url));

const TYPED = `
  import { fstatSync, openSync, readSync } from "node:fs";
  import { type ByteSource, FileSource, Image, isQcowError, type CheckReport } from "qcowkit";
  class Mine implements ByteSource {
    readonly file = openSync("disk.qcow2", "r");
    readonly size = fstatSync(this.file).size;
    readAt(offset: number, into: Uint8Array): number {
      return readSync(this.file, into, 0, into.length, offset);
    }
  }
  export function check(): CheckReport | string {
    try {
      using image = Image.open(new Mine(), { resolver: ({ name }) => ({ input: new FileSource(name) }) });
      return image.check({ progress: (done) => done.toFixed() });
    } catch (error) {
      return isQcowError(error) ? error.code : String(error);
    }
  }`;

test("the packed package installs and loads by each of its entries", () => {
  const elsewhere = mkdtempSync(join(tmpdir(), "qcowkit-package-"));
  const npm = (...parameters) =>
    execFileSync("npm", [...parameters, "--silent", "--offline"], { cwd: elsewhere, encoding: "utf8" }).trim();
  try {
    const name = npm("pack", FOLDER);
    writeFileSync(join(elsewhere, "package.json"), "{}");
    npm("install", `./${name}`);
    const program = `
      import assert from "node:assert/strict";
      import { existsSync, readFileSync, writeFileSync } from "node:fs";
      import { fileURLToPath } from "node:url";
      import * as node from "qcowkit";
      import * as named from "qcowkit/node";
      import * as web from "qcowkit/web";
      import { connect } from "qcowkit/client";
      import { serve, BlobSource } from "qcowkit/worker";
      assert.equal(named.Image, node.Image);
      web.initSync({ module: readFileSync(new URL(import.meta.resolve("qcowkit/qcowkit.wasm"))) });
      for (const part of ["change", "check", "codecs", "crypto", "lab", "look", "walk"]) {
        assert.ok(existsSync(fileURLToPath(import.meta.resolve("qcowkit/parts/" + part + ".wasm"))), part);
      }
      for (const entry of ["bundler", "worker-main", "worker", "client", "web", "node"]) {
        const file = fileURLToPath(import.meta.resolve("qcowkit/" + entry));
        assert.ok(existsSync(file) && existsSync(file.replace(/js$/, "d.ts")), file);
      }
      assert.deepEqual([typeof connect, typeof serve, typeof BlobSource], ["function", "function", "function"]);
      const image = node.Image.create(2 ** 40);
      image.write(2 ** 39, new Uint8Array([1, 2, 3]));
      writeFileSync("disk.qcow2", image.save());
      const again = node.Image.open(new node.FileSource("disk.qcow2"));
      assert.deepEqual([...again.read(2 ** 39, 3)], [1, 2, 3]);
      console.log(node.version() === web.version());`;
    writeFileSync(join(elsewhere, "program.mjs"), program);
    const printed = execFileSync(process.execPath, ["program.mjs"], { cwd: elsewhere, encoding: "utf8" });
    assert.equal(printed.trim(), "true");
    // A strict program for Node, which knows nothing of browsers, with the package's own types checked as well.
    writeFileSync(join(elsewhere, "typed.mts"), TYPED);
    writeFileSync(join(elsewhere, "tsconfig.json"), JSON.stringify({
      compilerOptions: {
        strict: true, skipLibCheck: false, noEmit: true, target: "es2022", lib: ["es2022", "esnext.disposable"], module: "nodenext",
        types: ["node"], typeRoots: [join(FOLDER, "node_modules/@types")],
      },
      files: ["typed.mts"],
    }));
    execFileSync(join(FOLDER, "node_modules/.bin/tsc"), ["--project", "."], { cwd: elsewhere, encoding: "utf8" });
  } finally {
    rmSync(elsewhere, { recursive: true, force: true });
  }
});
