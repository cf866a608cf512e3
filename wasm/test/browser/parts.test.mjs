// The parts of the module, as a page and a worker load them.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { made } from "../images.mjs";
import { withPage } from "./browser.mjs";

const PAGE = "test/browser/blank.html";
const FILES = readdirSync(fileURLToPath(new URL("../../pkg/", import.meta.url))).filter((name) => name.endsWith(".wasm"));

// The files of the module that were asked for, in order.
function fetched({ requests }) {
  return requests.map((url) => url.slice(url.lastIndexOf("/") + 1)).filter((name) => name.endsWith(".wasm"));
}

test("a worker fetches a part when it is first needed, and each once", async (t) => {
  const path = join(made(t, "zlib"), "disk.qcow2");
  await withPage(PAGE, async (page, served) => {
    const asked = async (call) => {
      const before = fetched(served).length;
      const result = await page.evaluate(call);
      return [result, fetched(served).slice(before).sort()];
    };
    const [opened, first] = await asked(async () => {
      const { connect } = await import("/dist/client.js");
      const qcowkit = connect(new Worker("/dist/worker-main.js", { type: "module" }));
      const file = new File([await (await fetch("/files/disk.qcow2")).arrayBuffer()], "disk.qcow2");
      globalThis.image = await qcowkit.open(file);
      await globalThis.image.writeZeroes(0, 4096 * 16);
      return (await globalThis.image.map()).length > 0;
    });
    assert.deepEqual([opened, first], [true, ["qcowkit_bg.wasm"]]);
    const unpacked = () => globalThis.image.read(2 * 2 ** 20, 3).then((bytes) => [...bytes]);
    assert.deepEqual(await asked(unpacked), [[4, 4, 4], ["qcowkit_codecs.wasm"]]);
    assert.deepEqual(await asked(unpacked), [[4, 4, 4], []]);
    const checked = () => globalThis.image.check().then(({ corruptions }) => corruptions);
    assert.deepEqual(await asked(checked), [0, ["qcowkit_check.wasm", "qcowkit_walk.wasm"]]);
    assert.deepEqual(await asked(checked), [0, []]);
  }, { "disk.qcow2": path });
});

// A worker is asked twice while a file of the module cannot be had, and once more when it can.
async function findsLater(page, file, why) {
  let gone = true;
  await page.route(`**/${file}`, (route) => (gone ? route.fulfill({ status: 503, body: "" }) : route.continue()));
  const create = () => page.evaluate(async () => {
    const { connect } = await import("/dist/client.js");
    globalThis.qcowkit ??= connect(new Worker("/dist/worker-main.js", { type: "module" }));
    return globalThis.qcowkit.create(1 << 20).then((image) => image.virtualSize, ({ name, code, message }) => [name, code, message]);
  });
  for (let round = 0; round < 2; round += 1) {
    const [name, code, message] = await create();
    assert.deepEqual([name, code], ["QcowError", "not_loaded"]);
    assert.match(message, why);
  }
  gone = false;
  assert.equal(await create(), 1 << 20);
}

test("a worker whose part is not found fails the call, and finds it later", async () => {
  await withPage(PAGE, (page) => findsLater(page, "qcowkit_change.wasm", /'change'.*503/));
});

test("a worker whose module is not found says so, and finds it later", async () => {
  await withPage(PAGE, async (page) => {
    await findsLater(page, "qcowkit_bg.wasm", /the module is not loaded: .*503/);
    const none = await page.evaluate(async () => {
      const { connect } = await import("/dist/client.js");
      return connect(new Worker("/dist/nowhere.js", { type: "module" })).version().catch(({ message }) => message);
    });
    assert.match(none, /cannot be loaded$/);
  });
});

test("a page has all parts when it begins", async () => {
  await withPage(PAGE, async (page, served) => {
    const seen = await page.evaluate(async () => {
      const { default: init, Image, partsReady } = await import("/dist/web.js");
      const { loadedParts } = await import("/dist/parts.js");
      await init();
      const loaded = loadedParts().length;
      await init();
      await partsReady();
      const image = Image.create(1 << 20);
      return { loaded, corruptions: image.check().corruptions, size: image.info()["virtual-size"] };
    });
    assert.deepEqual(seen, { loaded: FILES.length - 1, corruptions: 0, size: 1 << 20 });
    assert.deepEqual(fetched(served).sort(), FILES.sort());
  });
});

test("a page that begins without the parts is told that one is missing, until they are there", async () => {
  await withPage(PAGE, async (page, served) => {
    const seen = await page.evaluate(async () => {
      const { default: init, Image, partsReady } = await import("/dist/web.js");
      await init({ parts: "demand" });
      const create = () => {
        try {
          return Image.create(1 << 20).virtualSize;
        } catch ({ name, code, message }) {
          return [name, code, message];
        }
      };
      const [before, again] = [create(), create()];
      await partsReady();
      return { before, again, after: create() };
    });
    const [name, code, message] = seen.before;
    assert.deepEqual([name, code, seen.again, seen.after], ["QcowError", "not_loaded", seen.before, 1 << 20]);
    assert.match(message, /'change'.*partsReady/);
    assert.equal(fetched(served).length, FILES.length);
  });
});

test("a module that is given as bytes has its parts from the package", async () => {
  await withPage(PAGE, async (page, served) => {
    const seen = await page.evaluate(async () => {
      const { default: init, Image } = await import("/dist/web.js");
      const module = await (await fetch("/pkg/qcowkit_bg.wasm")).blob();
      await init({ module_or_path: URL.createObjectURL(module) });
      return Image.create(1 << 20).check().corruptions;
    });
    assert.equal(seen, 0);
    assert.equal(fetched(served).length, FILES.length);
  });
});

test("parts come later if a page wants that, and from where it says", async () => {
  await withPage(PAGE, async (page, served) => {
    let gone = true;
    await page.route("**/elsewhere/**", (route) => {
      const file = route.request().url().replace("/elsewhere/", "/pkg/");
      return route.fulfill(gone && file.includes("look") ? { status: 404, body: "" } : { status: 302, headers: { location: file } });
    });
    const start = (options) => page.evaluate(async (options) => {
      const { default: init, Image, partsReady } = await import("/dist/web.js");
      const ended = await init(options).then(() => "done", ({ code }) => code);
      return [ended, await partsReady().then(() => Image.create(1 << 20).info()["virtual-size"], ({ code, message }) => [code, message])];
    }, options);
    const elsewhere = { module_or_path: "/elsewhere/qcowkit_bg.wasm" };
    const [ended, [code, message]] = await start({ ...elsewhere, parts: "later" });
    assert.deepEqual([ended, code], ["done", "not_loaded"]);
    assert.match(message, /'look'.*404/);
    assert.equal((await start(elsewhere))[0], "not_loaded");
    gone = false;
    assert.deepEqual(await start(elsewhere), ["done", 1 << 20]);
    const beside = served.requests.filter((url) => url.endsWith(".wasm") && url.includes("/elsewhere/"));
    assert.ok(beside.length >= FILES.length, beside.join());
  });
});
