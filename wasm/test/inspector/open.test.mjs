// Opening, and what is shown then.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { open, ready, scratch, withInspector } from "./inspector.mjs";

const folder = scratch();
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: "utf8" });
const image = join(folder, "disk.qcow2");
run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "256M");
run("qemu-io", "-c", "write -P 1 0 10M", "-c", "write -P 2 100M 3M", "-c", "write -z 30M 2M", "-c", "write -c -P 3 50M 64k", image);
run("qemu-img", "snapshot", "-c", "one", "disk.qcow2");
run("qemu-io", "-d", "unmap", "-c", "write -P 4 1M 2M", "-c", "discard 6M 2M", "-c", "discard 2M 1M", image);

// The files that the module is in.
const ASSETS = fileURLToPath(new URL("../../web/dist/assets/", import.meta.url));
const SAMPLES = readdirSync(join(ASSETS, "../samples")).length;
const PIECES = readdirSync(ASSETS).filter((name) => name.endsWith(".wasm")).length;

// The groups of the map, out of the classes of the ledger.
const GROUPS = {
  header: "header", encryption_header: "header", l1_table: "tables", l2_tables: "tables", refcount_table: "refcounts",
  refcount_blocks: "refcounts", bitmap_metadata: "bitmaps", bitmap_data: "bitmaps", live_data: "data", compressed_data: "compressed",
  compressed_slack: "compressed", snapshot_metadata: "snapshots", only_in_snapshots: "snapshots", zero_retained: "retained",
  leaked: "leaked", free: "free", beyond_last_used: "free",
};

// Bytes of the worker's objects and buffers, the module's memory among them, as the browser's debugger tells.
async function workerMemory(page) {
  const session = await page.context().newCDPSession(page);
  const attached = new Promise((resolve) => session.on("Target.attachedToTarget", ({ sessionId, targetInfo }) => {
    if (targetInfo.type === "worker") {
      resolve(sessionId);
    }
  }));
  await session.send("Target.setAutoAttach", { autoAttach: true, waitForDebuggerOnStart: false, flatten: false });
  const sessionId = await attached;
  const answer = new Promise((resolve) => session.on("Target.receivedMessageFromTarget", (event) => {
    const message = JSON.parse(event.message);
    if (event.sessionId === sessionId && message.id === 1) {
      resolve(message);
    }
  }));
  await session.send("Target.sendMessageToTarget", { sessionId, message: JSON.stringify({ id: 1, method: "Runtime.getHeapUsage" }) });
  const { result, error } = await answer;
  assert.equal(error, undefined);
  assert.ok(result.usedSize > 0, "the worker tells its heap");
  return result.usedSize + (result.backingStorageSize ?? 0);
}

async function countsAreRight(page) {
  const { ledger } = JSON.parse(execFileSync(process.env.QCOWKIT_PROGRAM, ["analyze", "--output=json", image], { encoding: "utf8" }));
  const classes = Object.fromEntries(ledger.classes.filter((line) => line.bytes > 0).map((line) => [line.class, line.bytes]));
  const shown = await page.$$eval("[data-ledger] li", (lines) => Object.fromEntries(lines.map((line) => [line.dataset.class, Number(line.dataset.bytes)])));
  assert.deepEqual(shown, classes);
  const groups = {};
  for (const [name, bytes] of Object.entries(classes)) {
    groups[GROUPS[name]] = (groups[GROUPS[name]] ?? 0) + bytes;
  }
  const legend = await page.$$eval(".legend tbody tr", (rows) => Object.fromEntries(rows.map((row) => [row.dataset.kind, Number(row.dataset.bytes)]).filter(([, bytes]) => bytes > 0)));
  assert.deepEqual(legend, groups);
  const check = JSON.parse(run("qemu-img", "check", "--output=json", "disk.qcow2"));
  await page.click("#tab-check");
  const numbers = await page.$$eval("[data-check] .number", (all) => Object.fromEntries(all.map((one) => [one.querySelector("dt").textContent, Number(one.querySelector("dd").dataset.value)])));
  assert.equal(numbers["Allocated clusters"], check["allocated-clusters"]);
  assert.equal(numbers["Compressed"], check["compressed-clusters"]);
  assert.equal(numbers["Image end"], check["image-end-offset"]);
}

test("a chosen file is shown, and its counts are those of the command line", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await page.waitForSelector("qcow-map canvas");
    await countsAreRight(page);
    // The disk's side: what qemu-img map says.
    const map = JSON.parse(run("qemu-img", "map", "--output=json", "disk.qcow2"));
    const sum = (test) => map.filter(test).reduce((all, row) => all + row.length, 0);
    await page.click("#tab-map");
    await page.getByRole("button", { name: /^Disk/ }).click();
    await page.waitForSelector("tr[data-kind=unallocated]");
    const legend = await page.$$eval(".legend tbody tr", (rows) => Object.fromEntries(rows.map((row) => [row.dataset.kind, Number(row.dataset.bytes)])));
    assert.equal(legend.data, sum((row) => row.data && !row.compressed));
    assert.equal(legend.compressed, sum((row) => row.compressed));
    assert.equal(legend.zero + legend.retained, sum((row) => row.present && row.zero));
    assert.equal(legend.unallocated, sum((row) => !row.present));
  });
});

test("a dropped file is shown, and a folder with a chain opens its top", async () => {
  copyFileSync(image, join(folder, "base.qcow2"));
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2");
  run("qemu-io", "-c", "write -P 9 20M 1M", join(folder, "top.qcow2"));
  await withInspector(async (page) => {
    const drop = async (...names) => {
      const files = names.map((name) => ({ name, bytes: [...readFileSync(join(folder, name))] }));
      const transfer = await page.evaluateHandle((files) => {
        const transfer = new DataTransfer();
        files.forEach(({ name, bytes }) => transfer.items.add(new File([new Uint8Array(bytes)], name)));
        return transfer;
      }, files);
      await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
      await ready(page);
    };
    run("qemu-img", "create", "-q", "-f", "qcow2", "small.qcow2", "1M");
    await drop("small.qcow2");
    assert.equal(await page.textContent(".summary h1"), "small.qcow2");
  });
  await withInspector(async (page) => {
    await page.setInputFiles("[data-open=file]", [join(folder, "base.qcow2")]);
    await ready(page);
    await page.getByRole("button", { name: "Open another" }).click();
    // A chain: files that are chosen together.
    await page.setInputFiles("[data-open=file]", [join(folder, "base.qcow2"), join(folder, "top.qcow2")]);
    await ready(page);
    assert.equal(await page.textContent(".summary h1"), "top.qcow2");
    await page.getByRole("button", { name: /^Disk/ }).click();
    const backing = Number(await page.getAttribute("tr[data-kind=backing]", "data-bytes"));
    assert.ok(backing >= 10 << 20, `${backing} bytes from the backing file`);
    assert.equal(Number(await page.getAttribute("tr[data-kind=data]", "data-bytes")), 1 << 20);
  });
});

test("6 GB open within two seconds, under 64 MB of heap", async () => {
  const large = join(folder, "large.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "large.qcow2", "6G");
  assert.ok(statSync(large).size > 6e9, "the file is as large as the disk");
  await withInspector(async (page) => {
    await page.waitForTimeout(500);
    const start = Date.now();
    await page.setInputFiles("[data-open=file]", large);
    await page.waitForSelector("qcow-map canvas");
    const took = Date.now() - start;
    await ready(page);
    // The page's heap, and that of the worker with the module's memory.
    const page_heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
    const worker_heap = await workerMemory(page);
    console.log(`# open in ${took} ms, heap ${(page_heap / 1e6).toFixed(1)} MB in the page, ${(worker_heap / 1e6).toFixed(1)} MB in the worker`);
    assert.ok(took < 2000, `${took} ms`);
    assert.ok(page_heap + worker_heap < 64e6, `${page_heap} and ${worker_heap} bytes`);
  });
});

test("an address is read by range requests alone", async () => {
  await withInspector(async (page, { asked, origin }) => {
    asked.length = 0;
    await page.fill("#url", `${origin}/images/disk.qcow2`);
    await page.click(".url-line button");
    await ready(page);
    await countsAreRight(page);
    const requests = asked.filter(({ path }) => path.startsWith("/images/"));
    const gets = requests.filter(({ method }) => method === "GET");
    assert.ok(gets.length > 0 && gets.every(({ range }) => range !== undefined), JSON.stringify(requests));
    assert.ok(requests.every(({ method }) => method === "GET" || method === "HEAD"));
  }, { images: folder });
});

test("the page's policy keeps its worker from other servers", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    const [worker] = page.workers();
    const said = await worker.evaluate(() => fetch("http://127.0.0.1:1/x").then(() => "sent", (error) => String(error)));
    assert.match(said, /Failed to fetch|blocked|policy/i);
    const blocked = await worker.evaluate(() => new Promise((resolve) => {
      addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
      fetch("http://127.0.0.1:1/x").catch(() => undefined);
      setTimeout(() => resolve("none"), 3000);
    }));
    assert.equal(blocked, "connect-src");
  }, { foreign: "http://127.0.0.1:1/", expected: /Content Security Policy/ });
});

test("a link leads to its place, and says nothing of the content", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await page.waitForSelector("qcow-hex .hex-byte.cursor");
    assert.match(await page.textContent(".hex-about"), /l1_table_offset/);
    // Its first byte is zero, and can be read all the same.
    const [ink, ground] = await page.$eval(".hex-byte.cursor", (byte) => [getComputedStyle(byte).color, getComputedStyle(byte).backgroundColor]);
    assert.notEqual(ink, ground);
    assert.match(await page.evaluate(() => location.hash), /^#offset=0x28&pane=structure$/);
  }, { fragment: "#offset=0x28&pane=structure" });
});

test("it works without a network once it was loaded", async () => {
  await withInspector(async (page, { context, server }) => {
    await page.evaluate(() => navigator.serviceWorker.ready);
    await page.waitForFunction(async () => (await caches.keys()).length > 0);
    const kept = await page.evaluate(async () => {
      const cache = await caches.open((await caches.keys())[0]);
      return (await cache.keys()).map(({ url }) => new URL(url).pathname);
    });
    assert.equal(kept.filter((path) => /^\/tools\/inspector\/assets\/qcowkit_\w+-.*\.wasm$/.test(path)).length, PIECES);
    server.closeAllConnections();
    server.close();
    await context.setOffline(true);
    await page.reload();
    await page.waitForSelector("qcow-start");
    await page.click("[data-sample='used.qcow2']");
    await ready(page);
    assert.equal(await page.textContent(".summary h1"), "used.qcow2");
  });
});

// Waits until the page has asked for all that it will need.
async function fetched(page, asked) {
  const paths = () => new Set(asked.map(({ path }) => path).filter((path) => /\.wasm$|\.gz$/.test(path)));
  for (const until = Date.now() + 20_000; paths().size < PIECES + SAMPLES && Date.now() < until;) {
    await page.waitForTimeout(20);
  }
  assert.equal(paths().size, PIECES + SAMPLES, [...paths()].join());
  assert.ok([...paths()].some((path) => path.includes("qcowkit_lab")));
  await page.waitForLoadState("networkidle");
}

test("without a service worker too, what the page may need later comes by itself, and no network is needed then", async () => {
  await withInspector(async (page, { asked, context, server }) => {
    await fetched(page, asked);
    server.closeAllConnections();
    server.close();
    await context.setOffline(true);
    await page.click("[data-sample='used.qcow2']");
    await ready(page);
    assert.notEqual(await page.textContent("qcow-summary .badge"), "cannot be checked");
    for (const pane of ["structure", "runs", "check", "partitions", "layout", "edit", "lab"]) {
      await page.click(`#tab-${pane}`);
      await page.waitForFunction(() => !/…/.test(document.querySelector("#pane > * > .message")?.textContent ?? ""));
      assert.deepEqual(await page.$$eval(".message.error, .notice", (all) => all.map((one) => one.textContent)), [], pane);
    }
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.waitForSelector(".player");
    // The browser asks for the page's icon whenever its address changes.
  }, { serviceWorkers: "block", expected: /ERR_INTERNET_DISCONNECTED/ });
});

for (const [what, files, words] of [
  ["worker", "**/worker-*.js", /worker failed: its file, or one that it imports, cannot be loaded\./],
  ["module", "**/qcowkit_bg-*.wasm", /The module is not loaded: .*503/],
]) {
  test(`a ${what} that cannot be had is told in words, and tried again`, async () => {
    await withInspector(async (page, { context }) => {
      let gone = true;
      await context.route(files, (route) => (gone ? route.fulfill({ status: 503, body: "" }) : route.continue()));
      await page.reload();
      for (let round = 0; round < 2; round += 1) {
        await (round === 0 ? page.setInputFiles("[data-open=file]", image) : page.getByRole("button", { name: "Try again" }).click());
        await page.waitForFunction(() => /cannot be shown/.test(document.querySelector(".failed")?.textContent ?? ""));
        assert.match(await page.innerText(".failed"), words);
      }
      gone = false;
      await page.getByRole("button", { name: "Try again" }).click();
      await ready(page);
    }, { serviceWorkers: "block", expected: /503/ });
  });
}

test("what is no image, and what is broken, gets a message and never a blank page", async () => {
  const bytes = readFileSync(image);
  const files = {
    "empty.qcow2": Buffer.alloc(0),
    "text.qcow2": Buffer.from("this is no image"),
    "zeros.qcow2": Buffer.alloc(1 << 20),
    "cut.qcow2": bytes.subarray(0, 300),
    "half.qcow2": bytes.subarray(0, 200_000),
  };
  const changed = (name, change) => {
    files[name] = Buffer.from(bytes);
    change(files[name]);
  };
  changed("cluster-bits.qcow2", (all) => all.writeUInt32BE(40, 20));
  changed("huge-l1.qcow2", (all) => all.writeUInt32BE(0xffffffff, 36));
  changed("huge-disk.qcow2", (all) => all.writeBigUInt64BE(0x7fffffffffffffffn, 24));
  changed("refcounts-outside.qcow2", (all) => all.writeBigUInt64BE(0x7fffffffffff0000n, 48));
  changed("incompatible.qcow2", (all) => all.writeBigUInt64BE(1n << 40n, 72));
  changed("l2-everywhere.qcow2", (all) => all.fill(0x77, Number(all.readBigUInt64BE(40)), Number(all.readBigUInt64BE(40)) + 8));
  changed("snapshots-lie.qcow2", (all) => all.writeUInt32BE(60_000, 60));
  // A table behind the end of the file reads as zeros: 65,535 snapshots without names.
  changed("snapshots-nowhere.qcow2", (all) => {
    all.writeUInt32BE(65_535, 60);
    all.writeBigUInt64BE(0xe7270000000000n, 64);
  });
  // What fuzzing found, behind two bytes that are not the image's.
  const crashers = fileURLToPath(new URL("../../../fuzz/crashers/repair/", import.meta.url));
  for (const name of readdirSync(crashers)) {
    files[`${name}.qcow2`] = readFileSync(join(crashers, name)).subarray(2);
  }
  await withInspector(async (page) => {
    for (const [name, content] of Object.entries(files)) {
      writeFileSync(join(folder, name), content);
      const start = Date.now();
      await page.setInputFiles("[data-open=file]", join(folder, name));
      await page.waitForSelector(".failed, .summary .badge.bad, .message.error, .summary .badge.fair");
      const text = await page.innerText("main");
      assert.ok(text.trim().length > 40, `${name}: ${text}`);
      if (await page.isVisible(".tabs")) {
        for (const pane of ["structure", "runs", "check", "partitions", "layout", "edit", "map"]) {
          await page.click(`#tab-${pane}`);
          assert.ok((await page.innerText("#pane")).trim().length > 0, `${name}: ${pane}`);
          await page.waitForTimeout(100);
          const elements = await page.evaluate(() => document.querySelectorAll("*").length);
          assert.ok(elements < 20_000, `${name}: ${pane} has ${elements} elements`);
        }
      }
      const heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
      assert.ok(Date.now() - start < 20_000 && heap < 128e6, `${name}: ${Date.now() - start} ms, ${heap} bytes`);
      await page.getByRole("button", { name: /^Open (another|something else)/ }).click();
      await page.waitForSelector("qcow-start");
    }
    assert.ok(await workerMemory(page) < 256e6, "the worker's memory");
  });
});
