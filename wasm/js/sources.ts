/**
 * Sources that read synchronously where they can: all but {@link MemorySource} need a worker.
 *
 * @module
 */

import { array, fillsAtOnce, refusal } from "./arguments.js";
import type { Image } from "./image.js";
import type { ByteSource } from "./types.js";

/** Refuses a source where it could not read, before anything is asked of it. */
function needsWorker(source: string, can: boolean): void {
  if (!can || typeof document !== "undefined") {
    throw refusal("unsupported", `${source} reads synchronously, as only workers of a browser can: open the image in one (qcowkit/client), or give its bytes`);
  }
}

/** Bytes that are in memory, read without copying them first. */
export class MemorySource implements ByteSource {
  readonly cached = false;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = array(bytes, "bytes");
    fillsAtOnce(this);
  }

  get size(): number {
    return this.#bytes.length;
  }

  readAt(offset: number, into: Uint8Array): number {
    const part = this.#bytes.subarray(offset, offset + into.length);
    into.set(part);
    return part.length;
  }
}

/** A `File` or `Blob`, read by `FileReaderSync`: in dedicated and shared workers. */
export class BlobSource implements ByteSource {
  readonly #blob: Blob;
  readonly #reader: FileReaderSync;

  constructor(blob: Blob) {
    needsWorker("a BlobSource", typeof FileReaderSync !== "undefined");
    this.#blob = blob;
    this.#reader = new FileReaderSync();
    fillsAtOnce(this);
  }

  get size(): number {
    return this.#blob.size;
  }

  readAt(offset: number, into: Uint8Array): number {
    const bytes = new Uint8Array(this.#reader.readAsArrayBuffer(this.#blob.slice(offset, offset + into.length)));
    into.set(bytes);
    return bytes.length;
  }
}

/** A file of the private storage (OPFS), by a sync access handle: in dedicated workers. Locks the file until `close()`. */
export class PrivateFileSource implements ByteSource {
  readonly size: number;
  readonly #handle: FileSystemSyncAccessHandle;

  private constructor(handle: FileSystemSyncAccessHandle) {
    this.#handle = handle;
    this.size = handle.getSize();
    fillsAtOnce(this);
  }

  /** Opens a file of the origin's private storage; folders in `path` are separated by `/`. */
  static async open(path: string): Promise<PrivateFileSource> {
    needsWorker("a PrivateFileSource", typeof FileSystemFileHandle !== "undefined");
    const names = path.split("/").filter((name) => name !== "");
    const last = names.pop();
    if (last === undefined) {
      throw new TypeError("the path names no file");
    }
    let folder = await navigator.storage.getDirectory();
    for (const name of names) {
      folder = await folder.getDirectoryHandle(name);
    }
    return PrivateFileSource.of(await folder.getFileHandle(last));
  }

  static async of(file: FileSystemFileHandle): Promise<PrivateFileSource> {
    needsWorker("a PrivateFileSource", typeof file.createSyncAccessHandle === "function");
    return new PrivateFileSource(await file.createSyncAccessHandle());
  }

  readAt(offset: number, into: Uint8Array): number {
    return this.#handle.read(into as Uint8Array<ArrayBuffer>, { at: offset });
  }

  close(): void {
    this.#handle.close();
  }
}

/**
 * A URL, by synchronous requests with `Range`: in workers. The server must answer ranges (status 206) and tell the length;
 * a whole file is never fetched. A file that changes meanwhile (another `ETag` or `Last-Modified`) is an error. A server of
 * another origin must allow the page's to read (CORS).
 */
export class UrlSource implements ByteSource {
  readonly size: number;
  readonly #url: string;
  readonly #version: string;

  private constructor(url: string, size: number, version: string) {
    this.#url = url;
    this.size = size;
    this.#version = version;
    fillsAtOnce(this);
  }

  /** Asks for the first byte and the length. A server that would send the whole file is cut off, and refused. */
  static async open(url: string | URL): Promise<UrlSource> {
    needsWorker("a UrlSource", typeof XMLHttpRequest !== "undefined");
    const address = new URL(url, location.href).href;
    const first = await ask(address, { headers: { range: "bytes=0-0" } });
    await first.body?.cancel();
    if (first.status === 200) {
      throw new Error(`${address}: the server does not answer range requests (it would send the whole file)`);
    }
    // A file of 0 bytes has no first byte.
    if (first.status !== 206 && first.status !== 416) {
      throw new Error(`${address}: the server answers ${first.status}${first.statusText === "" ? "" : ` ${first.statusText}`}`);
    }
    // Other servers have to allow the page to read this header, and seldom do.
    const told = /\/(\d+)$/.exec(first.headers.get("content-range") ?? "")?.[1];
    if (told !== undefined) {
      return new UrlSource(address, Number(told), versionOf(first.headers));
    }
    const head = await ask(address, { method: "HEAD" });
    const length = head.headers.get("content-length");
    if (head.status !== 200 || length === null || !/^\d+$/.test(length)) {
      throw new Error(`${address}: the server does not tell the length (status ${head.status})`);
    }
    return new UrlSource(address, Number(length), versionOf(head.headers));
  }

  readAt(offset: number, into: Uint8Array): number {
    if (into.length === 0) {
      return 0;
    }
    const last = offset + into.length - 1;
    const answer = this.#request(`bytes=${offset}-${last}`);
    if (answer.status !== 206) {
      throw new Error(`${this.#url}: the server does not answer ranges (status ${answer.status})`);
    }
    if (versionOf({ get: (name) => answer.getResponseHeader(name) }) !== this.#version) {
      throw new Error(`${this.#url}: the file has changed on the server`);
    }
    // Servers of other origins seldom let a page read this.
    const told = answer.getResponseHeader("content-range");
    if (told !== null && !told.startsWith(`bytes ${offset}-`)) {
      throw new Error(`${this.#url}: the server sent another part than it was asked for (${told})`);
    }
    const bytes = new Uint8Array(answer.response as ArrayBuffer);
    into.set(bytes.subarray(0, into.length));
    return Math.min(bytes.length, into.length);
  }

  #request(range: string): XMLHttpRequest {
    const request = new XMLHttpRequest();
    request.open("GET", this.#url, false);
    request.responseType = "arraybuffer";
    request.setRequestHeader("range", range);
    try {
      request.send();
    } catch (cause) {
      throw new Error(unanswered(this.#url), { cause });
    }
    return request;
  }
}

async function ask(url: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, { ...init, cache: "no-store" });
  } catch (cause) {
    throw new Error(unanswered(url), { cause });
  }
}

/** A browser does not tell why there is no answer. */
function unanswered(url: string): string {
  const foreign = new URL(url).origin !== location.origin;
  return `${url}: no answer: the server cannot be reached${foreign ? `, or does not let pages of ${location.origin} read (CORS: it has to send Access-Control-Allow-Origin), or this page's policy does not allow the request` : ""}`;
}

function versionOf(headers: { get(name: string): string | null }): string {
  return headers.get("etag") ?? headers.get("last-modified") ?? "";
}

/** Bytes of edits that are copied at once, and of one piece of zeros. */
const PIECE = 1 << 24;

/**
 * The file as edited, as a Blob that refers to `base`, the very file that the image was opened on: only the edits take
 * memory. For images made or opened in memory `base` is left out, and everything is copied.
 */
export function composeBlob(image: Image, base?: Blob): Blob {
  const parts: BlobPart[] = [];
  let zeros: Blob | undefined;
  for (const { offset, length, source } of image.parts()) {
    if (source === "base" && base !== undefined) {
      parts.push(base.slice(offset, offset + length));
      continue;
    }
    for (let at = offset; at < offset + length; at += PIECE) {
      const piece = Math.min(PIECE, offset + length - at);
      if (source === "zeros") {
        zeros ??= new Blob([new Uint8Array(PIECE)]);
        parts.push(piece === PIECE ? zeros : zeros.slice(0, piece));
      } else {
        parts.push(image.hostBytes(at, piece));
      }
    }
  }
  return new Blob(parts, { type: "application/octet-stream" });
}
