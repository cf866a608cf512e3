// The page as a person has it: built, served from a sub-path of this machine, in a real Chromium.

import { createReadStream, mkdtempSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const PAGE = fileURLToPath(new URL("../../web/dist/", import.meta.url));

const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".wasm": "application/wasm",
};

// Without these a Chromium looks for its makers' servers, and as root it does not start.
const SWITCHES = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--enable-precise-memory-info",
];

// Serves the page at /tools/inspector/ and a folder of images at /images/, and remembers what was asked. `headers` are
// sent with every answer; without `ranges`, files are sent whole.
export async function serve(images, { headers = {}, ranges = true } = {}) {
  const asked = [];
  // How long each part of an image takes, in milliseconds.
  const slow = { delay: 0 };
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    asked.push({ path, method: request.method, range: request.headers.range });
    const place = path.startsWith("/tools/inspector/") ? [PAGE, path.slice(17) || "index.html"] : path.startsWith("/images/") && images ? [images, path.slice(8)] : undefined;
    const file = place && join(...place);
    const found = file && file.startsWith(place[0]) ? statSync(file, { throwIfNoEntry: false }) : undefined;
    if (!found?.isFile()) {
      response.writeHead(404, headers).end();
      return;
    }
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec((ranges && request.headers.range) || "") ?? [];
    const part = from === undefined ? {} : { start: Number(from), end: Math.min(Number(to), found.size - 1) };
    response.writeHead(from === undefined ? 200 : 206, {
      "content-type": TYPES[extname(file)] ?? "application/octet-stream",
      "content-length": from === undefined ? found.size : part.end - part.start + 1,
      ...headers,
      etag: `"${found.size}-${found.mtimeMs}"`,
      ...(from === undefined ? {} : { "content-range": `bytes ${part.start}-${part.end}/${found.size}` }),
    });
    if (slow.delay > 0 && path.startsWith("/images/")) {
      await new Promise((done) => setTimeout(done, slow.delay));
    }
    if (request.method === "HEAD") {
      response.end();
    } else {
      createReadStream(file, part).pipe(response);
    }
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return { server, asked, slow, origin: `http://127.0.0.1:${server.address().port}` };
}

let browser;
const folders = [];

after(async () => {
  await browser?.close();
  folders.forEach((folder) => rmSync(folder, { recursive: true, force: true }));
});

// A folder that goes when the tests of the file are done.
export function scratch() {
  const folder = mkdtempSync(join(tmpdir(), "qcowkit-inspector-"));
  folders.push(folder);
  return folder;
}

// Opens the page and passes it. Afterwards nothing may have failed in it, and nothing may have left the origin but for the
// one of `foreign`. What the browser's console says in the words of `expected` is what was asked for.
export async function withInspector(use, { images, fragment = "", foreign, expected, ...options } = {}) {
  const executablePath = process.env.QCOWKIT_CHROMIUM;
  if (!executablePath) {
    throw new Error("QCOWKIT_CHROMIUM must name a Chromium; cargo xtask test sets it");
  }
  browser ??= await chromium.launch({ executablePath, headless: true, args: SWITCHES });
  const { server, asked, slow, origin } = await serve(images);
  const context = await browser.newContext({ viewport: { width: 1360, height: 860 }, reducedMotion: "reduce", ...options });
  const wrong = [];
  context.on("request", (request) => {
    const url = request.url();
    if (!(foreign && url.startsWith(foreign)) && !url.startsWith(origin) && !url.startsWith("data:") && !url.startsWith("blob:")) {
      wrong.push(`request to ${url}`);
    }
  });
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    page.on("pageerror", (error) => wrong.push(`page error: ${error.stack}`));
    page.on("console", (message) => {
      if (message.type() === "error" && !expected?.test(message.text())) {
        wrong.push(`console: ${message.text()}`);
      }
    });
    await page.goto(`${origin}/tools/inspector/${fragment}`);
    await page.waitForSelector("qcow-start, pane-lab");
    await use(page, { origin, asked, context, server, slow });
    if (wrong.length > 0) {
      throw new Error(wrong.join("\n"));
    }
  } finally {
    await context.close();
    server.closeAllConnections();
    server.close();
  }
}

// Chooses a file, and waits until its map and its check are there.
export async function open(page, file) {
  await page.setInputFiles("[data-open=file]", file);
  await ready(page);
}

export async function ready(page) {
  await page.waitForSelector("qcow-summary .badge:not(.wait)");
  await page.waitForSelector("[data-ledger]");
}

// The file that a click saves.
export async function saved(page, name, folder) {
  await page.click(".menu summary");
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name, exact: false }).first().click();
  const file = await download;
  const path = join(folder, file.suggestedFilename());
  await file.saveAs(path);
  return path;
}
