/**
 * What is refused before it reaches the module, which takes arguments to be what their types say. Whether a number is an
 * offset, and what a name stands for, the module tells.
 *
 * @module
 */

import type { ByteSource, ErrorCode, ImageInput, Layer, Resolver } from "./types.js";

/** An error of this package. */
export function refusal(code: ErrorCode, message: string): Error {
  return Object.assign(new Error(message), { name: "QcowError", code });
}

function wrong(name: string, wanted: string, found: unknown): Error {
  const what = found === null ? "null" : typeof found === "object" ? "an object of another kind" : typeof found;
  return refusal("invalid_argument", `${name} must be ${wanted}, not ${what}`);
}

export function number(found: unknown, name: string): number {
  if (typeof found !== "number") {
    throw wrong(name, "a number", found);
  }
  return found;
}

export function text<T extends string>(found: T, name: string): T {
  if (typeof found !== "string") {
    throw wrong(name, "a string", found);
  }
  return found;
}

/** The milliseconds of a date. */
export function time(found: unknown, name: string): number {
  if (!(found instanceof Date)) {
    throw wrong(name, "a Date", found);
  }
  return found.getTime();
}

export function object<T extends object>(found: T, name: string): T {
  if (typeof found !== "object" || found === null) {
    throw wrong(name, "an object", found);
  }
  return found;
}

/** The module's memory ends here, and so do its lengths. */
const MOST = 2 ** 32;

/** Bytes, wherever they are. */
export function array(found: unknown, name: string): Uint8Array {
  if (!(found instanceof Uint8Array)) {
    throw wrong(name, "a Uint8Array", found);
  }
  return found;
}

/** Bytes that are still there, and that the module could hold. */
export function octets(given: unknown, name: string): Uint8Array {
  const found = array(given, name);
  if (found.length >= MOST) {
    throw refusal("limit", `${name}: an array of ${found.length} bytes is more than the module's memory holds (2^32); give a part, or a MemorySource`);
  }
  if (found.length === 0 && isDetached(found.buffer)) {
    throw refusal("invalid_argument", `${name}: the bytes were given away (their buffer is detached)`);
  }
  return found;
}

function isDetached(buffer: ArrayBufferLike): boolean {
  try {
    return new Uint8Array(buffer).length < 0;
  } catch {
    return true;
  }
}

/** How many sources are being read. What they are given to fill is a view of the module's memory, which no call may move. */
let reading = 0;

/** Refuses calls that come out of `readAt` of a source. */
export function notReading(): void {
  if (reading > 0) {
    throw refusal("locked", "a source must not call into qcowkit while it is read");
  }
}

/** Sources of this package, which fill what they are given before they return and keep nothing of it. */
const own = new WeakSet<ByteSource>();

/** Lets a source fill the module's memory itself, without a copy. */
export function fillsAtOnce(source: ByteSource): void {
  own.add(source);
}

/** What an image is opened on, as the module takes it: bytes, or a source that may not call back. */
export function inputOf(input: ImageInput): Uint8Array | ByteSource {
  if (ArrayBuffer.isView(input)) {
    return octets(input, "input");
  }
  if (input instanceof ArrayBuffer) {
    return octets(isDetached(input) ? undefined : new Uint8Array(input), "input");
  }
  if (typeof input !== "object" || input === null || typeof input.readAt !== "function") {
    throw refusal("invalid_argument", "an image comes from a Uint8Array, an ArrayBuffer or a ByteSource: for a path, new FileSource(path) in Node; for a File or Blob, new BlobSource(file) in a worker");
  }
  const { size, cached } = input;
  const readAt = (offset: number, into: Uint8Array): number => {
    reading += 1;
    try {
      if (own.has(input)) {
        return input.readAt(offset, into);
      }
      // One that fills it later, as an asynchronous one would, must not write where by then other things stand.
      const bytes = new Uint8Array(into.length);
      const read = input.readAt(offset, bytes);
      if (bytes.length === into.length) {
        into.set(bytes);
        return read;
      }
      throw refusal("invalid_argument", "readAt of the source gave away the bytes that it was to fill");
    } finally {
      reading -= 1;
    }
  };
  return { size, readAt, ...(cached === undefined ? {} : { cached }) };
}

/** The same for the files that a resolver finds. */
export function withLayers<T extends { readonly resolver?: Resolver }>(options: T): T {
  const resolver = object(options, "options").resolver;
  if (typeof resolver !== "function") {
    return options;
  }
  const found: Resolver = (reference) => {
    const layer = resolver(reference) as Layer | null | undefined;
    return layer === undefined || layer === null ? undefined : { ...layer, input: inputOf(layer.input) };
  };
  return { ...options, resolver: found };
}
