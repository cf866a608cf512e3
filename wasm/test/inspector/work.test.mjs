// Work that takes long: it can be stopped, edits survive that, and maps with too many runs come in parts.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { open, ready, saved, scratch, withInspector } from "./inspector.mjs";

const folder = scratch();
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: "utf8" });
// More metadata than the read-ahead holds, so that each report has to ask the server again.
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "slow.qcow2", "64G");

async function openSlow(page, origin) {
  await page.fill("#url", `${origin}/images/slow.qcow2`);
  await page.click(".url-line button");
  await ready(page);
}

async function write(page) {
  await page.click("#tab-edit");
  await page.fill("pane-edit [name=offset]", "1M");
  await page.fill("pane-edit [name=data]", "hello");
  await page.getByRole("button", { name: "Write", exact: true }).click();
  await page.waitForSelector(".journal li");
}

test("stopping ends the work, and keeps the image with its edits", async () => {
  await withInspector(async (page, { origin, slow }) => {
    await openSlow(page, origin);
    slow.delay = 700;
    await write(page);
    // The reports are made again, at the pace of the server.
    await page.click(".bar-busy button");
    await page.click("#tab-check");
    await page.waitForFunction(() => /You stopped it/.test(document.querySelector("#pane")?.textContent ?? ""));
    await page.waitForFunction(() => document.querySelector(".bar-busy button") === null);
    assert.match(await page.textContent(".chip.accent"), /1 edit/);
    // An edit that is stopped is taken back, and only that one.
    await page.getByRole("button", { name: "Repair all" }).click();
    await page.waitForFunction(() => /repair/.test(document.querySelector(".bar-busy")?.textContent ?? ""));
    await page.click(".bar-busy button");
    await page.waitForFunction(() => /stopped, and taken back/.test(document.querySelector(".notice")?.textContent ?? ""));
    slow.delay = 0;
    assert.match(await page.textContent(".chip.accent"), /1 edit/);
    while (await page.isVisible(".bar-busy button")) {
      await page.waitForTimeout(100);
    }
    for (const button of await page.getByRole("button", { name: "Try again" }).all()) {
      await button.click();
    }
    await page.waitForSelector("[data-check]");
    await page.click("#tab-edit");
    assert.equal(await page.locator(".journal li").count(), 1);
    // What the edits changed is there; the server has the rest.
    const script = await saved(page, "Patch, shell script", folder);
    run("cp", "--sparse=always", "slow.qcow2", "copy.qcow2");
    run("sh", script, "copy.qcow2");
    run("qemu-io", "-r", "-c", "read -P 0x68 1M 1", "-c", "read -P 0x6f 1048580 1", "copy.qcow2");
    run("qemu-img", "check", "-q", "copy.qcow2");
  }, { images: folder });
});

test("a worker that does not listen is ended only if the person agrees to lose edits", async () => {
  await withInspector(async (page, { origin, slow }) => {
    await openSlow(page, origin);
    slow.delay = 700;
    await write(page);
    await page.waitForSelector(".bar-busy button");
    const asked = [];
    const answers = [false, true];
    page.on("dialog", (dialog) => {
      asked.push(dialog.message());
      void (answers.shift() ? dialog.accept() : dialog.dismiss());
    });
    slow.delay = 11_000;
    await page.waitForTimeout(1000);
    await page.click(".bar-busy button");
    await page.waitForFunction(() => /stopped/i.test(document.querySelector("[aria-live=polite].sr")?.textContent ?? ""));
    for (let wait = 0; wait < 100 && asked.length < 1; wait += 1) {
      await page.waitForTimeout(100);
    }
    assert.match(asked[0], /lose the edits/);
    assert.match(await page.textContent(".chip.accent"), /1 edit/);
    await page.click(".bar-busy button");
    await page.waitForSelector(".failed");
    assert.equal(asked.length, 2);
    slow.delay = 0;
    await page.getByRole("button", { name: "Try again" }).click();
    await ready(page);
    assert.equal(await page.locator(".chip.accent").count(), 0);
  }, { images: folder });
});

// An image of clusters of 512 bytes, every two of which lie the other way round: each is a run of its own.
function fragmented(path, clusters) {
  const [unit, l2, perBlock] = [512, Math.ceil(clusters / 64), 256];
  const l1 = Math.ceil((l2 * 8) / unit);
  let [blocks, table] = [0, 0];
  const total = () => 1 + table + blocks + l1 + l2 + clusters;
  while (blocks * perBlock < total()) {
    blocks = Math.ceil(total() / perBlock);
    table = Math.ceil((blocks * 8) / unit);
  }
  const at = { table: 1, blocks: 1 + table, l1: 1 + table + blocks, l2: 1 + table + blocks + l1, data: 1 + table + blocks + l1 + l2 };
  const bytes = Buffer.alloc(at.data * unit);
  bytes.writeUInt32BE(0x514649fb, 0);
  bytes.writeUInt32BE(3, 4);
  bytes.writeUInt32BE(9, 20);
  bytes.writeBigUInt64BE(BigInt(clusters * unit), 24);
  bytes.writeUInt32BE(l2, 36);
  bytes.writeBigUInt64BE(BigInt(at.l1 * unit), 40);
  bytes.writeBigUInt64BE(BigInt(at.table * unit), 48);
  bytes.writeUInt32BE(table, 56);
  bytes.writeUInt32BE(4, 96);
  bytes.writeUInt32BE(104, 100);
  const pointer = (place, cluster, flag) => {
    const value = cluster * unit;
    bytes.writeUInt32BE(flag + Math.floor(value / 2 ** 32), place);
    bytes.writeUInt32BE(value % 2 ** 32, place + 4);
  };
  for (let index = 0; index < blocks; index += 1) {
    pointer(at.table * unit + index * 8, at.blocks + index, 0);
  }
  for (let cluster = 0; cluster < total(); cluster += 1) {
    bytes.writeUInt16BE(1, at.blocks * unit + cluster * 2);
  }
  for (let index = 0; index < l2; index += 1) {
    pointer(at.l1 * unit + index * 8, at.l2 + index, 2 ** 31);
  }
  for (let index = 0; index < clusters; index += 1) {
    pointer(at.l2 * unit + index * 8, at.data + (index ^ 1), 2 ** 31);
  }
  const file = openSync(path, "w");
  writeSync(file, bytes);
  ftruncateSync(file, total() * unit);
  closeSync(file);
}

test("a map with more runs than are held comes in parts, all of them by keyboard", async () => {
  const clusters = (1 << 20) + 20_000;
  fragmented(join(folder, "runs.qcow2"), clusters);
  await withInspector(async (page) => {
    const { keyboard } = page;
    await page.setInputFiles("[data-open=file]", join(folder, "runs.qcow2"));
    await page.waitForSelector(".parts");
    await page.waitForSelector(".badge.good", { timeout: 60_000 });
    await page.click("#tab-runs");
    const label = () => page.textContent(".parts span");
    const rows = async () => Number(await page.getAttribute("[role=grid]", "aria-rowcount")) - 1;
    const turn = async (name) => {
      const before = await label();
      await page.getByRole("button", { name }).focus();
      await keyboard.press("Enter");
      await page.waitForFunction((before) => {
        const now = document.querySelector(".parts span")?.textContent;
        return now !== undefined && now !== before;
      }, before, { timeout: 60_000 });
    };
    assert.equal(await rows(), 1 << 20);
    await turn("Next part");
    assert.match(await label(), /its end/);
    const tail = await rows();
    assert.ok(tail > 19_000 && tail < 60_000, `${tail} rows`);
    // The last row of the last part is the last cluster of the file.
    await page.focus("[role=grid]");
    await keyboard.press("End");
    await page.waitForFunction(() => /512 B/.test(document.querySelector(".table-body .table-row.current")?.textContent ?? ""));
    await keyboard.press("Enter");
    await page.waitForSelector("qcow-map canvas");
    assert.match(await page.evaluate(() => location.hash), /pane=map/);
    // A place in another part turns to it.
    await keyboard.press("2");
    await page.fill(".hex-tools input", "0x0");
    await keyboard.press("Enter");
    await page.click("#tab-runs");
    await page.waitForFunction(() => /part is 0x0 to/.test(document.querySelector(".parts span")?.textContent ?? ""), undefined, { timeout: 60_000 });
    // The disk's side: every part but the last has as many rows.
    await page.getByRole("button", { name: /^Disk/ }).focus();
    await keyboard.press("Enter");
    await page.waitForSelector("[aria-label='Runs of the disk']", { timeout: 60_000 });
    let all = await rows();
    while (!/its end/.test(await label())) {
      await turn("Next part");
      all += await rows();
    }
    assert.equal(all, clusters);
    await turn("Part before");
    const heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
    assert.ok(heap < 400e6, `${heap} bytes`);
  });
});
