// Sources of the package against servers that do as they like; the browser's own classes are played here.

import assert from "node:assert/strict";
import test from "node:test";
import { BlobSource, Image, PrivateFileSource, UrlSource } from "qcowkit";
import { bytesOf } from "../qcowkit.mjs";
import { made } from "../images.mjs";

// A server of `bytes`, whose answers to requests for parts `change` may spoil.
function serve(t, bytes, change = (answer) => answer) {
  const answer = (range) => {
    const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(range).map(Number);
    const headers = { "content-range": `bytes ${from}-${Math.min(to, bytes.length - 1)}/${bytes.length}`, etag: '"1"' };
    return { status: 206, headers, body: bytes.slice(from, to + 1) };
  };
  const { fetch } = globalThis;
  t.after(() => {
    delete globalThis.location;
    delete globalThis.XMLHttpRequest;
    globalThis.fetch = fetch;
  });
  globalThis.location = new URL("http://server.test/");
  globalThis.fetch = async (_url, { headers }) => {
    const { status, body, headers: told } = answer(headers.range);
    return new Response(body, { status, headers: told });
  };
  globalThis.XMLHttpRequest = class {
    open() {}
    setRequestHeader(_name, range) {
      Object.assign(this, change(answer(range), range));
    }
    send() {
      this.response = this.body.buffer.slice(this.body.byteOffset, this.body.byteOffset + this.body.length);
    }
    getResponseHeader(name) {
      return this.headers[name] ?? null;
    }
  };
}

test("a server that answers as it should", async (t) => {
  const bytes = bytesOf(made(t, "plain"), "disk.qcow2");
  serve(t, bytes);
  const source = await UrlSource.open("disk.qcow2");
  assert.equal(source.size, bytes.length);
  assert.equal(Image.open(source).check().corruptions, 0);
  // Servers of other origins seldom let a page read where the part lies.
  serve(t, bytes, ({ headers: { etag }, ...answer }) => ({ ...answer, headers: { etag } }));
  assert.equal(Image.open(source).read(0, 1)[0], 7);
});

for (const [what, change, words] of [
  ["sends another part", (answer) => ({ ...answer, headers: { ...answer.headers, "content-range": "bytes 512-1023/4096" } }), /another part/],
  ["sends the whole file", (answer) => ({ ...answer, status: 200 }), /does not answer ranges/],
  ["sends less", (answer) => ({ ...answer, body: answer.body.subarray(0, 100) }), /fewer bytes/],
  ["has another file by now", (answer) => ({ ...answer, headers: { ...answer.headers, etag: '"2"' } }), /has changed/],
  ["fails", (answer) => ({ ...answer, status: 500 }), /500/],
]) {
  test(`a server that ${what} is found out`, async (t) => {
    serve(t, bytesOf(made(t, "plain"), "disk.qcow2"), change);
    const source = await UrlSource.open("disk.qcow2");
    assert.throws(() => Image.open(source), (error) => error.code === "storage" && words.test(`${error.message} ${error.cause?.message}`));
  });
}

test("a server that sends more than it was asked for harms nothing", async (t) => {
  serve(t, bytesOf(made(t, "plain"), "disk.qcow2"), (answer) => ({ ...answer, body: Buffer.concat([answer.body, Buffer.alloc(9999, 1)]) }));
  assert.equal(Image.open(await UrlSource.open("disk.qcow2")).check().corruptions, 0);
});

test("a source that Node cannot read says so, and a path or a Blob in place of a source what to do", async () => {
  const unsupported = (error) => error.name === "QcowError" && error.code === "unsupported" && /only workers/.test(error.message);
  await assert.rejects(UrlSource.open("http://127.0.0.1/x"), unsupported);
  await assert.rejects(PrivateFileSource.open("x"), unsupported);
  await assert.rejects(PrivateFileSource.of({}), unsupported);
  assert.throws(() => new BlobSource(new Blob(["x"])), unsupported);
  for (const input of ["disk.qcow2", new Blob(["x"])]) {
    assert.throws(() => Image.open(input), (error) => error.code === "invalid_argument" && /FileSource.*BlobSource/.test(error.message));
  }
});
