import assert from "node:assert/strict";
import test from "node:test";
import { withPage } from "./browser.mjs";

test("the module loads in a page", async () => {
  await withPage("test/browser/blank.html", async (page) => {
    const version = await page.evaluate(async () => {
      const qcowkit = await import("/pkg/web/qcowkit.js");
      await qcowkit.default();
      return qcowkit.version();
    });
    assert.match(version, /^\d+\.\d+\.\d+$/);
  });
});
