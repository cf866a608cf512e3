// For everyone: the keyboard alone, and what axe finds in both themes.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import AxeBuilder from "@axe-core/playwright";
import { open, ready, scratch, withInspector } from "./inspector.mjs";

const folder = scratch();
const image = join(folder, "disk.qcow2");
execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", image, "64M"]);
execFileSync("qemu-io", ["-d", "unmap", "-c", "write -P 1 0 16M", "-c", "write -P 2 32M 4M", "-c", "discard 2M 1M", image]);

const PANES = ["map", "structure", "runs", "check", "partitions", "layout", "edit", "lab"];

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing, ${colorScheme}`, async () => {
    await withInspector(async (page) => {
      // What stands around the views is looked at once; after that only the view that is new.
      const clean = async (where, part) => {
        // Both themes have the same elements: in the second one the colours are what is new.
        const axe = part === undefined ? new AxeBuilder({ page }) : new AxeBuilder({ page }).include(part);
        // Lines of bytes and rows of tables are alike: some of them are enough.
        axe.exclude(".hex-line:nth-child(n+5)").exclude(".table-row:nth-child(n+8)");
        const { violations } = await (colorScheme === "dark" ? axe.withRules(["color-contrast"])
          : axe.withTags(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"])).analyze();
        assert.deepEqual(violations.map(({ id, nodes }) => `${where}: ${id} ${nodes.map((node) => node.html.slice(0, 140)).join(" | ")}`), []);
      };
      await clean("start");
      await page.click("[data-sample='damaged.qcow2']");
      await ready(page);
      await page.waitForSelector("qcow-map canvas");
      for (const pane of PANES) {
        await page.click(`#tab-${pane}`);
        await page.waitForTimeout(250);
        await clean(pane, pane === "map" ? undefined : "#pane");
      }
      await page.fill("[name=size]", "64M");
      await page.fill("[name=operations]", "300");
      await page.getByRole("button", { name: "Run", exact: true }).click();
      await page.waitForSelector(".lab-numbers");
      await clean("lab with a result", "#pane");
      await page.click("#tab-edit");
      await page.fill("[name=start]", "0");
      await page.fill("[name=length]", "1M");
      await page.getByRole("button", { name: "Select", exact: true }).click();
      await page.waitForSelector(".plans");
      await clean("edit with a plan", "#pane");
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Help" }).click();
      await clean("help", "dialog");
    }, { colorScheme });
  });
}

for (const width of [400, 320]) {
  test(`windows of ${width} pixels show everything without scrolling sideways`, async () => {
    await withInspector(async (page) => {
      // One with partitions, a snapshot and gaps.
      await page.click("[data-sample='used.qcow2']");
      await ready(page);
      const outside = (what) => page.$$eval(what, (all) => all.filter((one) => one.getBoundingClientRect().right > innerWidth || one.getBoundingClientRect().left < 0).length);
      assert.equal(await outside("[role=tab]"), 0, "the tabs");
      for (const pane of PANES) {
        await page.click(`#tab-${pane}`);
        await page.waitForTimeout(150);
        const [inner, all] = await page.evaluate(() => [innerWidth, document.documentElement.scrollWidth]);
        assert.ok(all <= inner, `${pane}: ${all} pixels in ${inner}`);
      }
      await page.click("#tab-structure");
      await page.waitForSelector(".hex-line:nth-of-type(3)");
      const shown = await page.$$eval(".hex-lines, .hex-byte", ([pane, ...bytes]) => bytes.map((one) => pane.getBoundingClientRect().right - one.getBoundingClientRect().right));
      assert.ok(shown.length >= 64 && Math.min(...shown) >= 0, `a byte stands ${-Math.min(...shown)} pixels outside`);
      await page.locator(".hex-lines").focus();
      await page.keyboard.press("ArrowDown");
      await page.keyboard.press("End");
      assert.match(await page.innerText(".hex-about"), /0xf /);
    }, { viewport: { width, height: 800 } });
  });
}

test("the menu fits on narrow windows, and closes by Escape and by what is done elsewhere", async () => {
  await withInspector(async (page) => {
    await open(page, image);
    const isOpen = () => page.$eval(".menu", (menu) => menu.open);
    await page.click(".menu summary");
    const box = await page.locator(".menu ul").boundingBox();
    assert.ok(box.x >= 0 && box.x + box.width <= 400, JSON.stringify(box));
    await page.locator(".menu li button").first().focus();
    await page.keyboard.press("Escape");
    assert.equal(await isOpen(), false);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Save");
    await page.keyboard.press("Enter");
    assert.equal(await isOpen(), true);
    await page.click("#tab-structure");
    assert.equal(await isOpen(), false);
    await page.click(".menu summary");
    await page.focus("#tab-structure");
    assert.equal(await isOpen(), false);
  }, { viewport: { width: 400, height: 800 } });
});

test("the mouse: hovering tells what is there, dragging selects, the wheel zooms", async () => {
  await withInspector(async (page) => {
    await page.click("[data-sample='used.qcow2']");
    await ready(page);
    await page.waitForSelector("qcow-map canvas");
    // Cells of the first row, sixteen kibibytes each.
    const box = await page.locator(".map-cells").boundingBox();
    const size = await page.$eval("qcow-map", (map) => map.view.size);
    const cell = (index) => [box.x + (index + 0.5) * size, box.y + size / 2];
    const facts = async (index) => {
      await page.mouse.move(...cell(index));
      await page.waitForSelector(".map-tip");
      await page.waitForTimeout(50);
      return page.textContent(".map-tip");
    };
    assert.match(await facts(0), /^\s*Header\s*Offset\s*0x0\s*Run\s*0x0, 16 KiB\s*Refcount\s*1\s*Owner\s*header of the disk/);
    assert.match(await facts(3), /L1 table\s*Offset\s*0xc000/);
    assert.match(await facts(5), /Live data[\s\S]*Refcount\s*2\s*Owner\s*data cluster of the disk and snapshots, 2 references[\s\S]*Guest\s*0x0/);
    await page.mouse.move(...cell(5));
    await page.mouse.down();
    await page.mouse.move(...cell(8), { steps: 4 });
    await page.mouse.up();
    assert.match(await page.textContent(".details"), /0x14000 to 0x24000, 64 KiB of the file/);
    const scale = () => page.textContent(".map-scale");
    const before = await scale();
    await page.keyboard.down("Control");
    for (let turn = 0; turn < 3; turn += 1) {
      await page.mouse.wheel(0, 300);
    }
    await page.keyboard.up("Control");
    await page.waitForFunction((before) => document.querySelector(".map-scale").textContent !== before, before);
    assert.match(await scale(), /clusters/);
  });
});

test("sizes are told in three digits, and never as powers of ten", async () => {
  await withInspector(async (page) => {
    for (const [size, text] of [[1049100288, "1001 MiB"], [2 ** 40 - 65536, "1.00 TiB"], [1023 * 1024, "1023 KiB"], [2 ** 30, "1 GiB"]]) {
      execFileSync("qemu-img", ["create", "-q", "-f", "qcow2", join(folder, "sized.qcow2"), String(size)]);
      await open(page, join(folder, "sized.qcow2"));
      assert.equal(await page.textContent(`.number dd[data-value='${size}']`), text);
      await page.getByRole("button", { name: "Open another" }).click();
    }
  });
});

test("from opening to saving with the keyboard alone", async () => {
  await withInspector(async (page) => {
    const { keyboard } = page;
    const focused = () => page.evaluate(() => `${document.activeElement?.getAttribute("aria-label") ?? ""} ${document.activeElement?.textContent?.trim() ?? ""}`);
    const tabTo = async (what, most = 60) => {
      for (let step = 0; step < most; step += 1) {
        await keyboard.press("Tab");
        if (what.test(await focused())) {
          return;
        }
      }
      throw new Error(`no way to ${what} by Tab; at ${await focused()}`);
    };
    await tabTo(/A used disk/);
    await keyboard.press("Enter");
    await ready(page);
    await page.waitForSelector("qcow-map canvas");
    // What was pressed is gone; the keyboard goes on at the views.
    assert.match(await focused(), /^ Map$/);
    // The map: moving tells what is there, Shift selects.
    await tabTo(/Map of the file/);
    await keyboard.press("ArrowRight");
    await keyboard.press("ArrowRight");
    await page.waitForFunction(() => /Refcount/.test(document.querySelector("[aria-live=polite].sr")?.textContent ?? ""));
    assert.match(await page.textContent("[aria-live=polite].sr"), /0x8000: Refcount blocks, run of 16 KiB, refcount 1, owner: refcount block/);
    // Every fact of the map is in the table.
    await keyboard.press("3");
    await page.waitForSelector(".table-row.current");
    assert.match(await page.innerText(".table-body .table-row.current"), /0x8000[\s\S]*16 KiB[\s\S]*Refcount blocks[\s\S]*1[\s\S]*refcount block/);
    await tabTo(/Runs of the file/);
    for (let step = 0; step < 4; step += 1) {
      await keyboard.press("ArrowDown");
    }
    await keyboard.press("Enter");
    await page.waitForSelector("qcow-map");
    // A row leads to its place on the map, and that to its bytes; the keyboard goes along.
    await page.waitForFunction(() => /^Map of the file/.test(document.activeElement?.getAttribute("aria-label") ?? ""));
    await keyboard.press("Enter");
    await page.waitForFunction(() => /^Bytes of the file/.test(document.activeElement?.getAttribute("aria-label") ?? ""));
    await keyboard.press("1");
    await page.waitForFunction(() => document.activeElement?.id === "tab-map");
    // The tree and the bytes.
    await keyboard.press("2");
    await tabTo(/^ .*(Header|magic|L1|Refcount|Snapshot|version)/);
    await keyboard.press("Home");
    await keyboard.press("ArrowRight");
    await keyboard.press("ArrowDown");
    await tabTo(/Bytes of the file/);
    await keyboard.press("ArrowDown");
    // The disk: select with Shift, discard, save.
    await keyboard.press("1");
    await tabTo(/Disk/);
    await keyboard.press("Enter");
    await tabTo(/Map of the disk/);
    await keyboard.press("Home");
    await keyboard.press("Shift+ArrowRight");
    await keyboard.press("Shift+ArrowDown");
    await page.waitForFunction(() => /^Selected 0x0 to 0x\w+ of the disk/.test(document.querySelector("[aria-live=polite].sr")?.textContent ?? ""));
    await tabTo(/^ Edit…/);
    await keyboard.press("Enter");
    await page.waitForSelector(".plans .down");
    await tabTo(/Apply discard under unmap/);
    await keyboard.press("Enter");
    await page.waitForSelector(".journal li");
    const download = page.waitForEvent("download");
    await page.focus("#main");
    await keyboard.press("Control+s");
    const path = join(folder, "saved.qcow2");
    await (await download).saveAs(path);
    execFileSync("qemu-img", ["check", "-q", path]);
    assert.notDeepEqual(readFileSync(path).length, 0);
  });
});
