// A real Chromium, already installed, on pages that this process serves from the package's folder.

import { createReadStream, mkdtempSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const FOLDER = fileURLToPath(new URL("../../", import.meta.url));

const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

// Without these a Chromium looks for its makers' servers, and as root it does not start.
const SWITCHES = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

// Serves the folder on a free port of this machine only, and `files` by name under /files/, with ranges and as servers
// do that keep them: with a version. What was asked of them is in `asked`.
async function serve(files, asked) {
  const server = createServer((request, response) => {
    const path = normalize(new URL(request.url, "http://localhost").pathname);
    const file = path.startsWith("/files/") ? files[path.slice(7)] : join(FOLDER, path);
    const found = file && (path.startsWith("/files/") || file.startsWith(FOLDER)) && statSync(file, { throwIfNoEntry: false });
    if (!found?.isFile()) {
      response.writeHead(404).end();
      return;
    }
    const headers = { "content-type": TYPES[extname(file)] ?? "application/octet-stream", "accept-ranges": "bytes", etag: `"${found.mtimeMs}"` };
    if (path.startsWith("/files/")) {
      asked.push([request.method, request.headers.range ?? null]);
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
    const [start, end] = range ? [Number(range[1]), Math.min(Number(range[2]), found.size - 1)] : [0, found.size - 1];
    headers["content-length"] = found.size === 0 ? 0 : end - start + 1;
    if (range) {
      headers["content-range"] = `bytes ${start}-${end}/${found.size}`;
    }
    response.writeHead(range ? 206 : 200, headers);
    if (request.method === "HEAD" || found.size === 0) {
      response.end();
      return;
    }
    createReadStream(file, { start, end }).pipe(response);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  return server;
}

// One browser for all tests of a file: starting one takes longer than most tests.
let started;

// At the top: within a test it would be the end of that test.
after(async () => {
  const { context, profile } = (await started) ?? {};
  await context?.close();
  if (profile) {
    rmSync(profile, { recursive: true, force: true });
  }
});

async function browser() {
  const executablePath = process.env.QCOWKIT_CHROMIUM;
  if (!executablePath) {
    throw new Error("QCOWKIT_CHROMIUM must name a Chromium; cargo xtask test sets it");
  }
  const profile = mkdtempSync(join(tmpdir(), "qcowkit-chromium-"));
  const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args: SWITCHES });
  return { context, profile };
}

// Opens `path` of the package's folder in a browser and passes the page, the requests that it made, and what was asked of
// `files`.
export async function withPage(path, use, files = {}) {
  started ??= browser();
  const { context } = await started;
  const asked = [];
  const server = await serve(files, asked);
  const origin = `http://127.0.0.1:${server.address().port}`;
  const page = await context.newPage();
  try {
    const requests = [];
    page.on("request", (request) => requests.push(request.url()));
    page.on("pageerror", (error) => requests.push(`page error: ${error}`));
    await page.goto(`${origin}/${path}`);
    await use(page, { origin, requests, asked });
  } finally {
    await page.close();
    server.closeAllConnections();
    server.close();
  }
}
