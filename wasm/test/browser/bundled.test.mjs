// The package in a bundle, as an application has it: installed, bundled for production, served from a sub-path.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "vite";
import { withPage } from "./browser.mjs";

const FOLDER = fileURLToPath(new URL("../../", import.meta.url));
const PIECES = readdirSync(join(FOLDER, "pkg")).filter((name) => name.endsWith(".wasm")).length;

const MAIN = `
import { Image, isQcowError } from "qcowkit";
import { connect } from "qcowkit/client";

globalThis.work = async () => {
  const image = Image.create(2 ** 30);
  image.write(5, new Uint8Array([1, 2, 3]));
  const told = [image.check().corruptions, image.info()["virtual-size"]];
  try {
    image.read(2 ** 53, 1);
  } catch (error) {
    told.push(isQcowError(error) && error.code);
  }
  const file = new Blob([image.save()]);
  const workers = [
    new Worker(new URL("./worker.js", import.meta.url), { type: "module" }),
    new Worker(new URL("qcowkit/worker-main", import.meta.url), { type: "module" }),
  ];
  for (const worker of workers) {
    const qcowkit = connect(worker);
    const remote = await qcowkit.open(file);
    told.push([...await remote.read(5, 3)], (await remote.check()).corruptions, (await remote.info())["virtual-size"]);
    qcowkit.terminate();
  }
  return told;
};`;

const WORKER = `import "qcowkit/worker-main";`;

function bundled(folder) {
  const project = join(folder, "project");
  mkdirSync(project);
  const name = execFileSync("npm", ["pack", FOLDER, "--silent", "--offline"], { cwd: folder, encoding: "utf8" }).trim();
  writeFileSync(join(project, "package.json"), `{ "type": "module" }`);
  execFileSync("npm", ["install", `../${name}`, "--silent", "--offline"], { cwd: project });
  writeFileSync(join(project, "main.js"), MAIN);
  writeFileSync(join(project, "worker.js"), WORKER);
  writeFileSync(join(project, "index.html"), `<!doctype html><script type="module" src="/main.js"></script>`);
  return project;
}

test("a production bundle has the module with its parts, in the page and in workers", async () => {
  const folder = mkdtempSync(join(tmpdir(), "qcowkit-bundled-"));
  try {
    const root = bundled(folder);
    await build({ root, base: "./", logLevel: "error", configFile: false, worker: { format: "es" }, build: { target: "es2022" } });
    const made = readdirSync(join(root, "dist"), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    const paths = made.map((entry) => join(entry.parentPath, entry.name).slice(join(root, "dist").length + 1));
    assert.equal(paths.filter((path) => path.endsWith(".wasm")).length, PIECES, paths.join());
    const files = Object.fromEntries(paths.map((path) => [`some/where/${path}`, join(root, "dist", path)]));
    await withPage("files/some/where/index.html", async (page, { origin, requests }) => {
      await page.waitForFunction(() => globalThis.work !== undefined, undefined, { timeout: 20_000 });
      const inWorker = [[1, 2, 3], 0, 2 ** 30];
      assert.deepEqual(await page.evaluate(() => globalThis.work()), [0, 2 ** 30, "limit", ...inWorker, ...inWorker]);
      assert.deepEqual(requests.filter((url) => !url.startsWith(`${origin}/files/some/where/`) && !url.startsWith("blob:")), [`${origin}/favicon.ico`].filter((icon) => requests.includes(icon)));
    }, files);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
