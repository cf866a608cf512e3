// The package in a page and in its worker, in a real Chromium.

import assert from "node:assert/strict";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { made } from "../images.mjs";
import { bytesOf, folder, qemuBytes, qemuCheck, run } from "../qcowkit.mjs";
import { withPage } from "./browser.mjs";

const PAGE = "test/browser/blank.html";
const MIB = 1 << 20;

// Nothing leaves the origin.
function stayed({ origin, requests }) {
  assert.deepEqual(requests.filter((url) => !url.startsWith(origin) && !/^(data|blob):/.test(url)), []);
}

test("a page makes, edits and saves an image without a worker", async (t) => {
  const cwd = folder(t);
  await withPage(PAGE, async (page, served) => {
    const { saved, info, error } = await page.evaluate(async () => {
      const { default: init, Image } = await import("/dist/web.js");
      await init();
      const image = Image.create(2 ** 40);
      image.write(2 ** 39, new Uint8Array(100_000).fill(7));
      image.discard({ offset: 2 ** 39, length: 65536 }, { unref: "retain_unshared" });
      const error = (() => {
        try {
          return Image.open(new Uint8Array(4096));
        } catch (thrown) {
          return { isError: thrown instanceof Error, name: thrown.name, code: thrown.code };
        }
      })();
      // As text: a list of numbers would take a minute to cross.
      let text = "";
      for (const byte of image.save()) {
        text += String.fromCharCode(byte);
      }
      return { saved: btoa(text), info: image.info(), error };
    });
    assert.deepEqual(error, { isError: true, name: "QcowError", code: "not_qcow2" });
    assert.equal(info["virtual-size"], 2 ** 40);
    assert.equal(qemuCheck(cwd, Buffer.from(saved, "base64")), 0);
    stayed(served);
  });
});

// Opens `disk.qcow2` in the package's own worker by one of the sources, uses it, and gives what came of it.
async function inWorker(page, kind, files) {
  return page.evaluate(async ({ kind, files }) => {
    const { connect } = await import("/dist/client.js");
    const qcowkit = connect(new Worker("/dist/worker-main.js", { type: "module" }));
    const bytes = async (name) => (await fetch(`/files/${name}`)).arrayBuffer();
    const input = async (name) => {
      switch (kind) {
        case "file":
          return new File([await bytes(name)], name);
        case "bytes":
          return new Uint8Array(await bytes(name));
        case "url":
          return { url: `/files/${name}` };
        case "opfs": {
          const root = await navigator.storage.getDirectory();
          const dir = await root.getDirectoryHandle("images", { create: true });
          const writable = await (await dir.getFileHandle(name, { create: true })).createWritable();
          await writable.write(await bytes(name));
          await writable.close();
          return { opfs: `images/${name}` };
        }
      }
    };
    const layers = {};
    for (const name of files.slice(1)) {
      layers[name] = await input(name);
    }
    const told = [];
    const image = await qcowkit.open(await input(files[0]), { files: layers });
    const result = {
      info: await image.info(),
      size: await image.virtualSize,
      map: await image.map(),
      check: await image.check({ progress: (done) => told.push(done) }),
      clusters: (await image.clusters()).host_offset.constructor.name,
    };
    await image.write(1_000_000, new Uint8Array(5000).fill(9));
    const checkpoint = await image.checkpoint();
    await image.write(0, new Uint8Array(1));
    await image.rollback(checkpoint);
    const snapshot = await image.createSnapshot("mine");
    const view = await image.openSnapshot("mine");
    result.view = [snapshot, (await view.read(1_000_000, 1))[0], await view.readOnly];
    const blob = await qcowkit.blob(image);
    // As text: a list of numbers would take minutes to cross.
    result.saved = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.split(",")[1]);
      reader.readAsDataURL(blob);
    });
    result.problem = await image.problem;
    result.refused = await image.read(2 ** 53, 1).catch((error) => [error instanceof Error, error.name, error.code]);
    const trace = await qcowkit.churn({ size: 2 ** 28, operations: 300 });
    const report = await qcowkit.replay(trace, { size: 2 ** 28 }, { configs: [{}], progress: (...done) => told.push(done) });
    const steps = await qcowkit.beginReplay(trace, { size: 2 ** 28 }, {});
    await steps.step(10);
    result.lab = [report.runs.length, (await steps.frame()).host.length > 0, await steps.done];
    await view.close();
    await image.close();
    result.closed = await image.info().catch((error) => error.code);
    result.told = told.length > 3;
    qcowkit.terminate();
    result.ended = await image.info().catch((error) => error.message);
    return result;
  }, { kind, files });
}

for (const kind of ["file", "url", "opfs", "bytes"]) {
  test(`a worker opens, edits and saves an image from: ${kind}`, async (t) => {
    const cwd = made(t, "plain");
    const path = join(cwd, "disk.qcow2");
    const before = bytesOf(path);
    const map = JSON.parse(run(cwd, "qemu-img map --output=json disk.qcow2"));
    const expected = qemuBytes(cwd, "disk.qcow2");
    expected.fill(9, 1_000_000, 1_005_000);
    await withPage(PAGE, async (page, served) => {
      const seen = await inWorker(page, kind, ["disk.qcow2"]);
      assert.deepEqual(seen.map, map);
      assert.deepEqual([seen.size, seen.info["virtual-size"], seen.check.corruptions, seen.clusters], [64 * MIB, 64 * MIB, 0, "Float64Array"]);
      assert.deepEqual(seen.view, ["1", 9, true]);
      assert.equal(seen.problem, undefined);
      assert.deepEqual(seen.refused, [true, "QcowError", "limit"]);
      assert.deepEqual([seen.lab, seen.closed, seen.told], [[1, true, 10], "closed", true]);
      assert.match(seen.ended, /ended/);
      const saved = Buffer.from(seen.saved, "base64");
      assert.equal(qemuCheck(cwd, saved), 0);
      assert.deepEqual(qemuBytes(cwd, "checked.qcow2"), expected);
      if (kind === "url") {
        const [first, ...rest] = served.asked;
        assert.deepEqual(first, ["GET", "bytes=0-0"]);
        assert.ok(rest.every(([method, range]) => method === "GET" && range !== null), JSON.stringify(rest));
      }
      stayed(served);
    }, { "disk.qcow2": path });
    assert.deepEqual(bytesOf(path), before);
  });
}

test("a worker refuses what cannot be opened, and goes on", async () => {
  await withPage(PAGE, async (page) => {
    const [codes, rest] = await page.evaluate(async () => {
      const { connect } = await import("/dist/client.js");
      const qcowkit = connect(new Worker("/dist/worker-main.js", { type: "module" }));
      const code = (promise) => promise.then(() => "none", (error) => `${error.name} ${error.code ?? ""}`.trim());
      const blob = new Blob(["no image"]);
      const wrong = [undefined, null, 5, "x", {}, () => 1, { url: 5 }, { opfs: 5 }];
      const codes = await Promise.all([
        ...wrong.map((input) => code(qcowkit.open(input))), ...wrong.map((input) => code(qcowkit.audit(input))),
        code(qcowkit.open(blob, null)), code(qcowkit.open(blob, { files: { a: 7 } })), code(qcowkit.open(blob, { files: { a: null } })),
        code(qcowkit.blob(5)), code(qcowkit.replay(5, { size: 5 })),
      ]);
      const image = await qcowkit.create(2 ** 20);
      const rest = [await code(image.read("5", 1)), await code(image.use()), await code(qcowkit.open(blob))];
      await image.close();
      await image.close();
      rest.push(await code(image.read(0, 1)), await qcowkit.version());
      return [codes, rest];
    });
    assert.deepEqual([...new Set(codes)], ["QcowError invalid_argument"]);
    assert.deepEqual(rest.slice(0, 4), ["QcowError invalid_argument", "TypeError", "QcowError not_qcow2", "QcowError closed"]);
    assert.match(rest[4], /^\d/);
  });
});

test("a worker opens a chain from the files that it is given, and no others", async (t) => {
  const cwd = folder(t);
  run(cwd, "qemu-img create -f qcow2 base.qcow2 64M && qemu-io -c 'write -P 5 0 2M' base.qcow2 && " +
    "qemu-img create -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 && qemu-io -c 'write -P 6 1M 64k' disk.qcow2");
  const map = JSON.parse(run(cwd, "qemu-img map --output=json disk.qcow2"));
  const files = { "disk.qcow2": join(cwd, "disk.qcow2"), "base.qcow2": join(cwd, "base.qcow2") };
  await withPage(PAGE, async (page) => {
    const seen = await inWorker(page, "file", ["disk.qcow2", "base.qcow2"]);
    assert.deepEqual(seen.map, map);
    const alone = await page.evaluate(async () => {
      const { connect } = await import("/dist/client.js");
      const qcowkit = connect(new Worker("/dist/worker-main.js", { type: "module" }));
      const file = new File([await (await fetch("/files/disk.qcow2")).arrayBuffer()], "disk.qcow2");
      return qcowkit.open(file).catch((error) => [error.name, error.code, error.structure, error.depth]);
    });
    assert.deepEqual(alone, ["QcowError", "denied", "backing_file", 0]);
  }, files);
});

test("a file of 6 GB opens by reading its metadata alone, and a server without ranges is refused", async (t) => {
  const cwd = folder(t);
  const path = join(cwd, "large.qcow2");
  run(cwd, "qemu-img create -f qcow2 -o preallocation=metadata large.qcow2 6G");
  truncateSync(path, 6 * 2 ** 30 + 10 * MIB);
  await withPage(PAGE, async (page, { asked }) => {
    const seen = await page.evaluate(async () => {
      const { connect } = await import("/dist/client.js");
      const qcowkit = connect(new Worker("/dist/worker-main.js", { type: "module" }));
      const start = performance.now();
      const image = await qcowkit.open({ url: "/files/large.qcow2" });
      const opened = performance.now() - start;
      const check = await image.check();
      const none = await qcowkit.open({ url: "/files/gone.qcow2" }).catch((error) => error.message);
      return { opened, allocated: check.allocated_clusters, corruptions: check.corruptions, none };
    });
    assert.deepEqual([seen.allocated, seen.corruptions], [98_304, 0]);
    assert.ok(seen.opened < 2000, `${seen.opened} ms`);
    assert.match(seen.none, /404/);
    const bytes = asked.filter(([, range]) => range).map(([, range]) => range.slice(6).split("-").map(Number))
      .reduce((sum, [start, end]) => sum + end - start + 1, 0);
    assert.ok(bytes < 16 * MIB, `${bytes} bytes of a 6 GB file`);
  }, { "large.qcow2": path });
});

test("sources that need a worker say so in a page, before they ask for anything", async () => {
  await withPage(PAGE, async (page, { asked }) => {
    const said = await page.evaluate(async () => {
      const { BlobSource, PrivateFileSource, UrlSource } = await import("/dist/web.js");
      const folder = await navigator.storage.getDirectory();
      const file = await folder.getFileHandle("some", { create: true });
      const calls = [async () => new BlobSource(new Blob(["x"])), () => UrlSource.open("/files/disk.qcow2"), () => PrivateFileSource.open("some"), () => PrivateFileSource.of(file)];
      return Promise.all(calls.map((call) => call().catch(({ code, message }) => `${code}: ${message}`)));
    });
    assert.deepEqual(said.map((one) => /^unsupported: a \w+Source .*workers/.test(one)), [true, true, true, true], said.join());
    assert.deepEqual(asked, []);
  }, { "disk.qcow2": fileURLToPath(new URL("blank.html", import.meta.url)) });
});
