// Takes the pictures of the page for docs/inspector, of the page as it is built: node make-pictures.mjs. Needs a Chromium,
// which QCOWKIT_CHROMIUM names. They are looked at by a person and kept in the repository; no test compares them.

import { join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";
import { ready, withInspector } from "../test/inspector/inspector.mjs";

const OUT = fileURLToPath(new URL("../../docs/inspector/", import.meta.url));

function picture(name, sample, make, { height = 800, ...options } = {}) {
  test(name, () => withInspector(async (page) => {
    if (sample !== undefined) {
      await page.click(`[data-sample='${sample}.qcow2']`);
      await ready(page);
      await page.waitForSelector("qcow-map canvas");
    }
    await make(page);
    await page.waitForTimeout(700);
    await page.screenshot({ path: join(OUT, `${name}.png`) });
  }, { viewport: { width: 1280, height }, colorScheme: name.split("-")[1], ...options }));
}

const hover = async (page) => {
  const map = await page.locator(".map-cells").boundingBox();
  await page.mouse.move(map.x + 408, map.y + 140);
};

const discard = async (page) => {
  await page.click("#tab-edit");
  await page.fill("[name=start]", "17M");
  await page.fill("[name=length]", "24M");
  await page.getByRole("button", { name: "Select", exact: true }).click();
  await page.getByRole("button", { name: "Apply discard under no-unref", exact: true }).click();
  await page.waitForSelector(".journal li");
  await ready(page);
  await page.waitForSelector(".plans");
};

const play = async (page) => {
  await page.getByRole("button", { name: /The discard lab/ }).click();
  await page.getByRole("button", { name: "Run", exact: true }).click();
  await page.waitForFunction(() => document.querySelector("pane-lab button[type=submit]")?.disabled === false && document.querySelector(".player"), undefined, { timeout: 60_000 });
  await page.$eval(".player input", (slider) => {
    slider.value = String(Math.round(Number(slider.max) * 0.85));
    slider.dispatchEvent(new Event("input"));
  });
};

picture("map-light", "used", hover);
picture("map-dark", "subclusters", hover);
picture("structure-light", "used", async (page) => {
  await page.click("#tab-structure");
  await page.fill(".hex-tools input", "0x28");
  await page.keyboard.press("Enter");
});
picture("runs-light", "used", (page) => page.click("#tab-runs"));
picture("edit-light", "used", discard);
picture("check-dark", "damaged", (page) => page.click("#tab-check"));
picture("lab-dark", undefined, play, { height: 1060, reducedMotion: "no-preference" });
