import assert from "node:assert/strict";
import test from "node:test";
import { FEATURES, made } from "../images.mjs";
import { withPage } from "./browser.mjs";

// Bytes travel to the page as a list of numbers.
const sample = made(...FEATURES.at(-1));
const numbers = [...sample.bytes];

test("a page opens an image and tells what it is", async () => {
  await withPage("test/browser/blank.html", async (page, { origin, requests }) => {
    const seen = await page.evaluate(async (numbers) => {
      const { default: init, Image } = await import("/pkg/web/qcowkit.js");
      await init();
      const image = Image.open(new Uint8Array(numbers));
      const info = image.info();
      image.close();
      return { info, closed: image.closed };
    }, numbers);
    assert.deepEqual(seen.info, sample.said);
    assert.equal(seen.closed, true);
    // Nothing leaves the origin.
    assert.deepEqual(requests.filter((url) => !url.startsWith(origin) && !url.startsWith("data:")), []);
  });
});

test("a worker opens an image and tells what it is", async () => {
  await withPage("test/browser/blank.html", async (page) => {
    const info = await page.evaluate(async (numbers) => {
      const worker = new Worker("/test/browser/worker.mjs", { type: "module" });
      const answer = new Promise((resolve, reject) => {
        worker.onmessage = (event) => resolve(event.data);
        worker.onerror = (event) => reject(new Error(event.message));
      });
      const { buffer } = new Uint8Array(numbers);
      worker.postMessage(buffer, [buffer]);
      return answer;
    }, numbers);
    assert.deepEqual(info, sample.said);
  });
});

test("an error in a page says what and where", async () => {
  await withPage("test/browser/blank.html", async (page) => {
    const error = await page.evaluate(async () => {
      const { default: init, Image } = await import("/pkg/web/qcowkit.js");
      await init();
      try {
        Image.open(new Uint8Array(4096));
        return null;
      } catch (thrown) {
        return { isError: thrown instanceof Error, name: thrown.name, code: thrown.code, message: thrown.message };
      }
    });
    assert.deepEqual(error, {
      isError: true,
      name: "QcowError",
      code: "not_qcow2",
      message: error?.message,
    });
    assert.match(error.message, /not a qcow2 image/);
  });
});
