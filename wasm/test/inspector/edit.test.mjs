// Edits, and the files that leave the page.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { open, ready, saved, scratch, withInspector } from "./inspector.mjs";

const folder = scratch();
const DOCUMENTATION = fileURLToPath(new URL("../../../docs/inspector.md", import.meta.url));
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: "utf8" });
const image = join(folder, "disk.qcow2");
run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", "64M");
run("qemu-io", "-c", "write -P 1 0 16M", "-c", "write -P 2 32M 4M", image);

const select = async (page, start, length) => {
  await page.click("#tab-edit");
  await page.fill("[name=start]", start);
  await page.fill("[name=length]", length);
  await page.getByRole("button", { name: "Select", exact: true }).click();
};

const sound = (file) => run("qemu-img", "check", "-q", file);

test("select, discard, save: qemu-img finds the file sound, with the bytes that were meant", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await select(page, "4M", "2M");
    await page.waitForSelector(".plans .down");
    const apply = page.getByRole("button", { name: "Apply discard under unmap" });
    await apply.click();
    await page.waitForSelector(".journal li");
    await ready(page);
    assert.match(await page.textContent(".chip.accent"), /1 edit/);
    // The map shows it: there is free space now.
    await page.click("#tab-map");
    await page.waitForFunction(() => Number(document.querySelector("tr[data-kind=free]")?.dataset.bytes) === 2 << 20);
    const file = await saved(page, "Image", folder);
    sound(file);
    run("qemu-io", "-r", "-c", "read -P 1 0 4M", "-c", "read -P 0 4M 2M", "-c", "read -P 1 6M 10M", "-c", "read -P 2 32M 4M", file);
    const map = JSON.parse(run("qemu-img", "map", "--output=json", file));
    const gone = map.find((row) => row.start === 4 << 20);
    assert.deepEqual([gone.length, gone.data, gone.zero], [2 << 20, false, true]);
  });
});

test("no-unref keeps the clusters, undo takes it back", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await select(page, "4M", "2M");
    await page.getByRole("button", { name: "Apply discard under no-unref", exact: true }).click();
    await page.waitForSelector(".journal li");
    await page.click("#tab-map");
    await page.waitForFunction(() => Number(document.querySelector("tr[data-kind=retained]")?.dataset.bytes) === 2 << 20);
    await page.keyboard.press("Control+z");
    await page.waitForFunction(() => Number(document.querySelector("tr[data-kind=retained]")?.dataset.bytes) === 0);
    await page.click("#tab-edit");
    assert.equal(await page.locator(".journal li").count(), 0);
    const file = await saved(page, "Image", folder);
    assert.deepEqual(readFileSync(file), readFileSync(image));
  });
});

test("bytes, zeros, snapshots: the image, the script and the JSON say the same", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await select(page, "33M", "1M");
    await page.getByRole("button", { name: "Zero the selection" }).click();
    await page.waitForSelector(".journal li:nth-child(1)");
    await page.fill("[name=name]", "kept");
    await page.getByRole("button", { name: "Take a snapshot" }).click();
    await page.waitForSelector(".journal li:nth-child(2)");
    await page.fill("pane-edit [name=offset]", "0x100000");
    await page.selectOption("pane-edit [name=form]", "hex");
    await page.fill("pane-edit [name=data]", "de ad be ef");
    await page.getByRole("button", { name: "Write", exact: true }).click();
    await page.waitForSelector(".journal li:nth-child(3)");
    const file = await saved(page, "Image", folder);
    sound(file);
    run("qemu-io", "-r", "-c", "read -P 0xde 1M 1", "-c", "read -P 0xef 1048579 1", "-c", "read -P 1 1048580 100", "-c", "read -P 0 33M 1M", "-c", "read -P 2 34M 2M", file);
    assert.match(run("qemu-img", "snapshot", "-l", file), /kept/);
    const script = await saved(page, "Patch, shell script", folder);
    const copy = join(folder, "patched.qcow2");
    copyFileSync(image, copy);
    run("sh", script, copy);
    assert.deepEqual(readFileSync(copy), readFileSync(file));
    assert.throws(() => execFileSync("sh", [script, script], { stdio: "pipe" }), "another file is refused");
    // The program that the documentation gives for the JSON.
    const patch = await saved(page, "Patch, JSON", folder);
    writeFileSync(join(folder, "apply.py"), /```python\n([\s\S]+?)```/.exec(readFileSync(DOCUMENTATION, "utf8"))[1]);
    copyFileSync(image, copy);
    run("python3", "apply.py", patch, copy);
    assert.deepEqual(readFileSync(copy), readFileSync(file));
    assert.ok(JSON.parse(readFileSync(patch, "utf8")).parts.some(({ source }) => source === "zeros"), "holes are among it");
    assert.throws(() => execFileSync("python3", [join(folder, "apply.py"), patch, patch], { stdio: "pipe" }), "another file is refused");
    const report = readFileSync(await saved(page, "Report", folder), "utf8");
    assert.match(report, /Live data/);
    const edits = await page.$$eval(".journal li", (all) => all.map((one) => one.textContent.trim()));
    assert.ok(edits.length > 0);
    assert.deepEqual([.../<h2>Edits<\/h2><ol>(.*?)<\/ol>/.exec(report)[1].matchAll(/<li>(.*?)<\/li>/g)].map(([, title]) => title), edits);
    assert.doesNotMatch(report, /<script/i);
  });
});

test("a damaged image: findings lead to their place, repair makes it sound", async () => {
  await withInspector(async (page) => {
    await page.click("[data-sample='damaged.qcow2']");
    await ready(page);
    await page.waitForSelector(".badge.bad");
    await page.click("#tab-check");
    const links = page.locator(".findings .link", { hasText: "bytes" });
    const target = (await links.first().textContent()).replace("bytes ", "");
    await links.first().click();
    await page.waitForSelector(".hex-about");
    await page.waitForFunction((offset) => location.hash.includes(`offset=${offset}&`), target);
    await page.click("#tab-check");
    await page.getByRole("button", { name: "See what a repair would do" }).click();
    await page.waitForSelector(".message[role=status]");
    await page.getByRole("button", { name: "Repair all" }).click();
    await page.waitForSelector(".badge.good");
    const file = await saved(page, "Image", folder);
    sound(file);
  });
});

test("a large file is saved without holding it in memory", async () => {
  const large = join(folder, "large.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=2M", "large.qcow2", "300M");
  await withInspector(async (page) => {
    await open(page, large);
    await page.click("#tab-edit");
    await page.fill("pane-edit [name=offset]", "200M");
    await page.fill("pane-edit [name=data]", "hello");
    await page.getByRole("button", { name: "Write", exact: true }).click();
    await page.waitForSelector(".journal li");
    const file = await saved(page, "Image", folder);
    assert.equal(statSync(file).size, statSync(large).size);
    sound(file);
    run("qemu-io", "-r", "-c", "read -P 0x68 200M 1", "-c", "read -P 0x6f 209715204 1", file);
    const heap = await page.evaluate(() => performance.memory.usedJSHeapSize);
    assert.ok(heap < 64e6, `${heap} bytes`);
  });
});

test("leaving with edits asks first", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    await page.click("#tab-edit");
    await page.fill("pane-edit [name=offset]", "0");
    await page.fill("pane-edit [name=data]", "x");
    await page.getByRole("button", { name: "Write", exact: true }).click();
    await page.waitForSelector(".journal li");
    const asked = [];
    page.on("dialog", (dialog) => {
      asked.push(dialog.type());
      void dialog.dismiss();
    });
    await page.getByRole("button", { name: "Open another" }).click();
    assert.deepEqual(asked, ["confirm"]);
    assert.ok(await page.isVisible(".summary"), "still there");
    await page.close({ runBeforeUnload: true });
    for (let wait = 0; wait < 100 && asked.length < 2; wait += 1) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.deepEqual(asked, ["confirm", "beforeunload"]);
  });
});

test("the lab is a film where motion is welcome", async () => {
  await withInspector(async (page) => {
    await page.getByRole("button", { name: /The discard lab/ }).click();
    await page.fill("[name=size]", "64M");
    await page.fill("[name=operations]", "2000");
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.waitForSelector(".player");
    const moment = () => page.textContent(".operation");
    const moves = (before) => page.waitForFunction((before) => document.querySelector(".operation").textContent !== before, before);
    for (let turn = 0; turn < 3; turn += 1) {
      await moves(await moment());
    }
    await page.getByRole("button", { name: "Pause" }).click();
    const still = await moment();
    await page.waitForTimeout(400);
    assert.equal(await moment(), still);
    await page.getByRole("button", { name: "Play" }).click();
    await moves(still);
  }, { reducedMotion: "no-preference" });
});

test("the lab plays one workload under two policies", async () => {
  await withInspector(async (page) => {
    await page.getByRole("button", { name: /The discard lab/ }).click();
    await page.fill("[name=size]", "256M");
    await page.fill("[name=operations]", "3000");
    await page.selectOption("[name=trim]", "online");
    await page.getByRole("button", { name: "Run", exact: true }).click();
    await page.waitForFunction(() => document.querySelector("pane-lab button[type=submit]")?.disabled === false && document.querySelector(".player"), undefined, { timeout: 60_000 });
    // Motion is reduced here: there are steps, and no film.
    assert.equal(await page.getByRole("button", { name: "Play" }).count(), 0);
    const picture = () => page.$eval("canvas[data-map=A]", (canvas) => canvas.toDataURL());
    const first = await picture();
    for (let step = 0; step < 20; step += 1) {
      await page.getByRole("button", { name: "Step forward" }).click();
    }
    assert.notEqual(await picture(), first, "the map moves");
    await page.$eval(".player input", (slider) => { slider.value = slider.max; slider.dispatchEvent(new Event("input")); });
    const row = (name) => page.$$eval(".lab-numbers tbody tr", (rows, name) => rows.find((row) => row.querySelector("th").textContent === name).innerText, name);
    assert.match(await row("Kept without data"), /\t0 B\t.*[1-9]/, "unmap keeps nothing, no-unref does");
  });
});
