// What a person gives: folders with chains, addresses of other servers, passwords.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { open, ready, saved, scratch, serve, withInspector } from "./inspector.mjs";

const folder = scratch();
const run = (program, ...args) => execFileSync(program, args, { cwd: folder, encoding: "utf8" });

// Drops files and folders of this machine on the page, as a file manager does.
async function drop(page, ...paths) {
  const session = await page.context().newCDPSession(page);
  const data = { items: [], files: paths, dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await session.send("Input.dispatchDragEvent", { type, x: 300, y: 300, data });
  }
}

const legend = async (page, kind) => Number(await page.getAttribute(`tr[data-kind=${kind}]`, "data-bytes"));

test("a dropped folder: the chain is found by its names, two of one name are told apart by their folders", async () => {
  mkdirSync(join(folder, "machine/layers"), { recursive: true });
  mkdirSync(join(folder, "machine/other"));
  run("qemu-img", "create", "-q", "-f", "qcow2", "machine/layers/base.qcow2", "16M");
  run("qemu-io", "-c", "write -P 1 0 5M", "machine/layers/base.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "machine/other/base.qcow2", "16M");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "machine/layers/middle.qcow2");
  run("qemu-io", "-c", "write -P 2 8M 1M", "machine/layers/middle.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "layers/middle.qcow2", "-F", "qcow2", "machine/top.qcow2");
  run("qemu-io", "-c", "write -P 3 12M 2M", "machine/top.qcow2");
  writeFileSync(join(folder, "machine/notes.txt"), "no image");
  await withInspector(async (page) => {
    await drop(page, join(folder, "machine"));
    await ready(page);
    assert.equal(await page.textContent(".summary h1"), "top.qcow2");
    assert.equal(await page.locator("[data-missing]").count(), 0);
    await page.getByRole("button", { name: /^Disk/ }).click();
    await page.waitForSelector("tr[data-kind=backing]");
    assert.deepEqual([await legend(page, "data"), await legend(page, "backing")], [2 << 20, 6 << 20]);
    // The way of a byte through the layers: links lead into the file that is shown, and into no other.
    await page.waitForSelector(".way li:nth-child(2)");
    const links = await page.$$eval(".way > li", (layers) => layers.map((layer) => layer.querySelectorAll("button").length));
    assert.ok(links[0] > 0 && links.slice(1).every((count) => count === 0), String(links));
    // A file of the folder on the open page takes its place.
    await drop(page, join(folder, "machine/layers/base.qcow2"));
    await page.waitForFunction(() => document.querySelector(".summary h1")?.textContent === "base.qcow2");
  });
});

test("a backing file outside of what was given is missed in words, and everything else is shown", async () => {
  mkdirSync(join(folder, "alone"));
  run("qemu-img", "create", "-q", "-f", "qcow2", "secret.qcow2", "16M");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../secret.qcow2", "-F", "qcow2", "alone/disk.qcow2");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", "alone/absolute.qcow2", "1M");
  run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "alone/split.qcow2", "1M");
  run("qemu-io", "-c", "write -P 1 1M 128k", "alone/disk.qcow2");
  const own = { disk: { size: 16 << 20, data: 128 << 10 }, absolute: { size: 1 << 20, data: 0 }, split: { size: 1 << 20, data: 0 } };
  await withInspector(async (page) => {
    for (const [name, named, role] of [["disk", "../secret.qcow2", "backing_file"], ["absolute", "/etc/passwd", "backing_file"], ["split", "data.raw", "data_file"]]) {
      await drop(page, join(folder, "alone", `${name}.qcow2`));
      await page.waitForFunction((name) => document.querySelector(".summary h1")?.textContent === `${name}.qcow2`, name);
      await ready(page);
      const said = await page.textContent(`[data-missing=${role}]`);
      assert.ok(said.includes(`“${named}”`) && /not among the files that were given/.test(said) && /Choose or drop/.test(said), said);
      assert.equal(await page.locator("[data-missing]").count(), 1);
      await page.click("#tab-structure");
      await page.waitForSelector(".hex-byte");
      await page.click("#tab-map");
      // The disk too, as far as this image has it: the rest is from a file that is missing.
      await page.getByRole("button", { name: /^Disk/ }).click();
      await page.waitForSelector("[aria-label^='Map of the disk']");
      assert.equal(await legend(page, "backing"), role === "backing_file" ? own[name].size - own[name].data : 0, name);
      assert.equal(await legend(page, "data"), own[name].data, name);
      await page.getByRole("button", { name: /^File/ }).click();
    }
  });
});

test("guest data in a file of their own: shown, edited, taken back, and saved as a second file", async () => {
  mkdirSync(join(folder, "apart"));
  // QEMU looks for data files where it runs.
  const there = (at, program, ...args) => execFileSync(program, args, { cwd: at, encoding: "utf8" });
  there(join(folder, "apart"), "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "disk.qcow2", "16M");
  there(join(folder, "apart"), "qemu-io", "-c", "write -P 6 1M 2M", "disk.qcow2");
  await withInspector(async (page) => {
    await drop(page, join(folder, "apart"));
    await ready(page);
    assert.equal(await page.textContent(".summary h1"), "disk.qcow2");
    // Where the data lie is no place of the file that is shown.
    await page.getByRole("button", { name: /^Disk/ }).click();
    await page.focus(".map-frame");
    await page.keyboard.press("Home");
    for (let step = 0; step < 16; step += 1) {
      await page.keyboard.press("ArrowRight");
    }
    await page.waitForFunction(() => /Kind\s*Data/.test(document.querySelector(".details")?.textContent ?? ""));
    assert.equal(await page.getByRole("button", { name: "Show bytes" }).count(), 0);
    await page.click("#tab-edit");
    assert.match(await page.textContent("#pane"), /in a file of their own, “data.raw”/);
    const write = async (data, place) => {
      await page.fill("pane-edit [name=offset]", place);
      await page.fill("pane-edit [name=data]", data);
      await page.getByRole("button", { name: "Write", exact: true }).click();
    };
    await write("good", "1M");
    await page.waitForSelector(".journal li:nth-child(1)");
    await write("oops", "2M");
    await page.waitForSelector(".journal li:nth-child(2)");
    await page.getByRole("button", { name: "Undo", exact: true }).click();
    await page.waitForFunction(() => document.querySelectorAll(".journal li").length === 1);
    const place = join(folder, "apart/saved");
    mkdirSync(place);
    const image = await saved(page, "Image", place);
    await saved(page, "Data file", place);
    there(place, "qemu-io", "-r", "-c", "read -P 0x67 1M 1", "-c", "read -P 0x64 1048579 1", "-c", "read -P 6 1048580 100k", "-c", "read -P 6 2M 1M", image);
    there(place, "qemu-img", "check", "-q", image);
  });
});

test("an address of another server: its refusals are told in words, and its permission is enough", async () => {
  run("qemu-img", "create", "-q", "-f", "qcow2", "far.qcow2", "16M");
  run("qemu-io", "-c", "write -P 1 0 5M", "far.qcow2");
  const cors = { "access-control-allow-origin": "*" };
  const cases = [
    { options: {}, says: /does not let pages of .* read \(CORS/ },
    { options: { headers: cors, ranges: false }, says: /does not answer range requests/ },
    { options: { headers: cors }, path: "gone.qcow2", says: /the server answers 404/ },
    { options: { headers: cors } },
    { options: { headers: { ...cors, "access-control-expose-headers": "content-range, etag" } } },
  ];
  for (const { options, path = "far.qcow2", says } of cases) {
    const far = await serve(folder, options);
    try {
      await withInspector(async (page) => {
        await page.fill("#url", `${far.origin}/images/${path}`);
        await page.click(".url-line button");
        if (says !== undefined) {
          await page.waitForSelector(".failed");
          assert.match(await page.textContent(".failed"), says);
          // Nothing was fetched but the first byte, or the beginning of what was cut off.
          assert.ok(far.asked.length <= 2, JSON.stringify(far.asked));
          return;
        }
        await ready(page);
        assert.equal(await legend(page, "data"), 5 << 20);
        const gets = far.asked.filter(({ method }) => method === "GET");
        assert.ok(gets.length > 0 && gets.every(({ range }) => range !== undefined), JSON.stringify(far.asked));
        // The next image begins with a sealed worker again.
        far.asked.length = 0;
        await page.getByRole("button", { name: "Open another" }).click();
        await open(page, join(folder, "far.qcow2"));
        const [worker] = page.workers();
        assert.match(await worker.evaluate((url) => fetch(url).then(() => "sent", String), `${far.origin}/images/far.qcow2`), /Failed to fetch/);
        assert.deepEqual(far.asked, []);
      }, { foreign: far.origin, expected: /CORS policy|net::ERR_FAILED|404|Content Security Policy/ });
    } finally {
      far.server.closeAllConnections();
      far.server.close();
    }
  }
});

test("a server that cannot be reached, and what is no address, are told in words", async () => {
  await withInspector(async (page, { origin }) => {
    for (const [url, says] of [["http://127.0.0.1:9/x.qcow2", /cannot be reached/], [`${origin}/images/none.qcow2`, /http:\/\/\S+: the server answers 404/], ["file:///etc/passwd", /Only http and https/], ["http://[", /is not an address/]]) {
      await page.fill("#url", url);
      await page.click(".url-line button");
      await page.waitForSelector(".failed");
      assert.match(await page.textContent(".failed"), says);
      await page.getByRole("button", { name: "Open something else" }).click();
    }
  }, { foreign: "http://127.0.0.1:9/", expected: /ERR_|404/ });
});

for (const format of ["luks", "aes"]) {
  test(`an encrypted image (${format}) is shown without its password, and read and written with it`, async () => {
    const secret = ["--object", "secret,id=key,data=open sesame"];
    const file = `${format}.qcow2`;
    const encrypt = `encrypt.format=${format},encrypt.key-secret=key${format === "luks" ? ",encrypt.iter-time=10" : ""}`;
    run("qemu-img", "create", "-q", "-f", "qcow2", ...secret, "-o", encrypt, file, "8M");
    const drive = `driver=qcow2,encrypt.key-secret=key,file.filename=${file}`;
    run("qemu-io", ...secret, "--image-opts", "-c", "write -P 7 1M 1M", drive);
    await withInspector(async (page) => {
      await open(page, join(folder, file));
      assert.equal(await page.textContent(".summary .badge"), "clean");
      assert.equal(await legend(page, "data"), 1 << 20);
      const unlock = async (key) => {
        await page.fill("form.key input", key);
        await page.click("form.key button");
      };
      if (format === "luks") {
        await unlock("open barley");
        // It is as it was, and the message says why.
        await page.waitForSelector(".notice");
        assert.match(await page.textContent(".notice"), /password is wrong/);
        await ready(page);
        assert.equal(await page.textContent(".summary .badge"), "clean");
        assert.equal(await page.locator(".message.error").count(), 0);
        await page.click("#tab-partitions");
        await page.waitForFunction(() => /partition table/.test(document.querySelector("#pane")?.textContent ?? ""));
      }
      await unlock("open sesame");
      await page.waitForSelector("form.key", { state: "detached" });
      await ready(page);
      await page.click("#tab-edit");
      await page.fill("pane-edit [name=offset]", "4M");
      await page.fill("pane-edit [name=data]", "hello");
      await page.getByRole("button", { name: "Write", exact: true }).click();
      await page.waitForSelector(".journal li");
      const path = await saved(page, "Image", folder);
      run("qemu-io", ...secret, "-r", "--image-opts", "-c", "read -P 7 1M 1M", "-c", "read -P 0x68 4M 1", "-c", "read -P 0x6f 4194308 1", drive.replace(file, path));
      run("qemu-img", "check", "-q", ...secret, "--image-opts", drive.replace(file, path));
    });
  });
}
