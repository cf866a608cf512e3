// Tables that leave the page as CSV and JSON, and the lab on traces of every form.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { open, scratch, withInspector } from "./inspector.mjs";

const folder = scratch();
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: "utf8", maxBuffer: 1 << 26 });
const printed = (...args) => JSON.parse(run(process.env.QCOWKIT_PROGRAM, ...args, "--output=json"));
run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=32k", "disk.qcow2", "64M");
run("qemu-io", "-c", "write -P 1 0 10M", "-c", "write -P 2 32M 3M", "-c", "write -z 20M 1M", join(folder, "disk.qcow2"));
run("qemu-img", "snapshot", "-c", "one", "disk.qcow2");
run("qemu-io", "-d", "unmap", "-c", "discard 2M 1M", "-c", "write -P 3 5M 64k", "-c", "discard 33M 1M", join(folder, "disk.qcow2"));
run("qemu-img", "snapshot", "-d", "one", "disk.qcow2");

// What a click saves.
async function exported(page, click) {
  const download = page.waitForEvent("download");
  await click();
  const file = await download;
  const path = join(folder, file.suggestedFilename());
  await file.saveAs(path);
  return [file.suggestedFilename(), readFileSync(path, "utf8")];
}

test("tables leave the page as CSV of what is shown, and JSON as the command line prints it", async () => {
  await withInspector(async (page) => {
    await open(page, join(folder, "disk.qcow2"));
    await page.click("#tab-runs");
    const save = (name) => exported(page, () => page.getByRole("button", { name, exact: true }).click());
    const rows = (text) => {
      const [head, ...lines] = text.trim().split("\r\n").map((line) => line.split(","));
      return lines.map((line) => Object.fromEntries(head.map((name, index) => [name, line[index]])));
    };
    const shown = async () => Number(await page.getAttribute("[role=grid]", "aria-rowcount")) - 1;
    const length = (list) => list.reduce((sum, row) => sum + Number(row.length), 0);
    const { ledger } = printed("analyze", "disk.qcow2");
    const classes = (names) => ledger.classes.filter((line) => names.includes(line.class)).reduce((sum, line) => sum + line.bytes, 0);
    // The file: all of it, then one kind.
    const [name, text] = await save("CSV");
    assert.equal(name, "disk-host.csv");
    assert.equal(rows(text).length, await shown());
    assert.equal(length(rows(text)), ledger.file_length);
    assert.deepEqual(Object.keys(rows(text)[0]), ["offset", "length", "kind", "refcount", "owner", "guest_offset"]);
    await page.selectOption(".tools select", { label: "Live data" });
    const [, some] = await save("CSV");
    assert.ok(rows(some).length === await shown() && rows(some).every((row) => row.kind === "Live data"));
    assert.equal(length(rows(some)), classes(["live_data"]));
    // Sorted rows leave in their order.
    await page.getByRole("button", { name: "Length" }).click();
    const lengths = rows((await save("CSV"))[1]).map((row) => Number(row.length));
    assert.deepEqual(lengths, lengths.toSorted((a, b) => a - b));
    const host = JSON.parse((await save("JSON"))[1]);
    assert.equal(length(host), ledger.file_length);
    assert.ok(host.every((row, index) => index === 0 || row.host_offset === host[index - 1].host_offset + host[index - 1].length));
    await page.getByRole("button", { name: /^Gaps/ }).click();
    const [gaps, json] = await save("JSON");
    assert.equal(gaps, "disk-gaps.json");
    assert.equal(length(JSON.parse(json)), classes(["free", "beyond_last_used"]));
    assert.ok(length(JSON.parse(json)) > 0);
    assert.equal(length(rows((await save("CSV"))[1])), length(JSON.parse(json)));
    // The disk: what qemu-img and the command line print.
    await page.getByRole("button", { name: /^Disk/ }).click();
    await page.waitForSelector("[aria-label='Runs of the disk']");
    const guest = JSON.parse((await save("JSON"))[1]);
    assert.deepEqual(guest, JSON.parse(run("qemu-img", "map", "--output=json", "disk.qcow2")));
    assert.equal(length(rows((await save("CSV"))[1])), 64 << 20);
    await page.click("#tab-check");
    const check = JSON.parse((await save("JSON"))[1]);
    const cli = printed("check", "disk.qcow2");
    for (const key of ["corruptions", "leaks", "check_errors", "allocated_clusters", "fragmented_clusters"]) {
      assert.equal(check[key], cli[key] ?? cli[key.replaceAll("_", "-")] ?? 0, key);
    }
    await page.click("#tab-layout");
    const analysis = JSON.parse((await save("JSON"))[1]);
    // Which bytes of the file are holes, a browser does not tell.
    const plain = (report) => JSON.parse(JSON.stringify(report, (key, found) => (["held", "holes", "unknown", "held_outside_file"].includes(key) ? 0 : found)));
    assert.deepEqual(plain(analysis.ledger), plain(ledger));
  });
});

const OPERATIONS = [["write", 0, 8 << 20], ["write", 16 << 20, 8 << 20], ["discard", 4 << 20, 2 << 20], ["write", 24 << 20, 1 << 20], ["discard", 18 << 20, 3 << 20]];

// The same operations in the form of each tracer.
const TRACES = {
  "trace.csv": ["operation,offset,length,detail", ...OPERATIONS.map((one) => `${one.join(",")},`)],
  "trace.qemu-io": OPERATIONS.map(([what, offset, length]) => `${what} ${offset} ${length}`),
  "trace.iolog": ["fio version 2 iolog", "disk add", "disk open", ...OPERATIONS.map(([what, offset, length]) => `disk ${what === "discard" ? "trim" : what} ${offset} ${length}`), "disk close"],
  "trace.blkparse": OPERATIONS.map(([what, offset, length], index) =>
    `  8,0    3 ${String(index + 1).padStart(8)}     0.00000${index}000   697  D   ${what === "discard" ? "D" : "W"} ${offset / 512} + ${length / 512} [kworker]`),
};

async function replayed(page) {
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.waitForFunction(() => document.querySelector("pane-lab button[type=submit]")?.disabled === false && document.querySelector(".player"));
  await page.$eval(".player input", (slider) => { slider.value = slider.max; slider.dispatchEvent(new Event("input")); });
  return page.$$eval(".lab-numbers tbody tr", (rows) => Object.fromEntries(rows.map((row) => [row.children[0].textContent, [row.children[1].textContent, row.children[2].textContent]])));
}

const KIB = (bytes) => (bytes >= 1 << 20 ? `${Number.isInteger(bytes / (1 << 20)) ? bytes / (1 << 20) : (bytes / (1 << 20)).toPrecision(3)} MiB`
  : bytes >= 1024 ? `${bytes / 1024} KiB` : `${bytes} B`);

test("the lab replays traces of every form, on an empty disk and from the open image on, as the command line does", async () => {
  for (const [name, lines] of Object.entries(TRACES)) {
    writeFileSync(join(folder, name), `${lines.join("\n")}\n`);
  }
  const ends = (...more) => printed("replay", "--policy=unmap", "--policy=no-unref", ...more, "trace.csv").runs.map((one) => one.end);
  const agrees = (shown, [a, b]) => {
    assert.deepEqual(shown["Length of the file"], [KIB(a.file_length), KIB(b.file_length)]);
    assert.deepEqual(shown["Kept without data"], [KIB(a.retained_bytes), KIB(b.retained_bytes)]);
    assert.deepEqual(shown["Live data"], [KIB(a.live_bytes), KIB(b.live_bytes)]);
    assert.deepEqual(shown["Discontinuities"], [String(a.discontinuities), String(b.discontinuities)]);
    assert.deepEqual(shown["Metadata writes"].map((text) => text.replaceAll("\u202f", "")), [String(a.metadata_writes), String(b.metadata_writes)]);
  };
  await withInspector(async (page) => {
    await page.getByRole("button", { name: /The discard lab/ }).click();
    await page.selectOption("[name=source]", "trace");
    const seen = [];
    for (const name of Object.keys(TRACES)) {
      await page.setInputFiles("[name=trace]", join(folder, name));
      seen.push(await replayed(page));
    }
    seen.forEach((one) => assert.deepEqual(one, seen[0]));
    agrees(seen[0], ends(`--size=${25 << 20}`));
    // What is no trace is told with its line.
    await page.setInputFiles("[name=trace]", join(folder, "disk.qcow2"));
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.waitForSelector("pane-lab .message.error");
    assert.match(await page.textContent("pane-lab .message.error"), /line 1/);
    // From the open image on: its clusters are its own.
    await page.goto(page.url().split("#")[0]);
    await open(page, join(folder, "disk.qcow2"));
    await page.click("#tab-lab");
    await page.selectOption("[name=source]", "trace");
    await page.selectOption("[name=begin]", "image");
    assert.equal(await page.locator("[name=cluster-A]").count(), 0);
    await page.setInputFiles("[name=trace]", join(folder, "trace.csv"));
    const shown = await replayed(page);
    agrees(shown, ends("--image=disk.qcow2"));
    assert.notDeepEqual(shown["Live data"], seen[0]["Live data"]);
  });
});
