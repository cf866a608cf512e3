/**
 * The parts of the module: code that is loaded when something in it is first called.
 *
 * The module calls the loader in the midst of its work, so loading is synchronous then. Where it cannot be (a page), the
 * parts have to be there before.
 *
 * @module
 */

import { PARTS, POOL, setLoader } from "../pkg/qcowkit_parts.js";
import type { InitOutput } from "../pkg/qcowkit.js";

/** Gives a part's bytes at once, or throws. */
export type ReadNow = (url: URL) => BufferSource;

interface Part {
  readonly name: string;
  url: () => URL;
  compiled?: WebAssembly.Module;
  /** While it is fetched. */
  arriving?: Promise<WebAssembly.Module>;
  loaded: boolean;
}

const parts: Part[] = PARTS.map(({ name, url }) => ({ name, url, loaded: false }));

/** What parts import: what the first module and the parts before them export. */
let pool: Record<string, WebAssembly.ExportValue> | undefined;

/** The parts that are loaded, by name. */
export function loadedParts(): string[] {
  return parts.filter(({ loaded }) => loaded).map(({ name }) => name);
}

/** Begins with the first module, once: from now on its parts can be loaded. */
export function attach(exports: InitOutput, read: ReadNow): void {
  if (pool !== undefined) {
    return;
  }
  pool = { ...(exports as unknown as Record<string, WebAssembly.ExportValue>) };
  setLoader((wanted) => {
    for (const [index, part] of parts.entries()) {
      if ((wanted & (1 << index)) !== 0 && !part.loaded) {
        attempt(part, () => {
          part.compiled ??= new WebAssembly.Module(read(part.url()));
          adopt(part, new WebAssembly.Instance(part.compiled, imports()));
        });
      }
    }
  });
}

/** Says where the parts are, by the names of their files. */
export function place(locate: (file: string) => string | URL): void {
  for (const part of parts) {
    part.url = () => new URL(locate(`qcowkit_${part.name}.wasm`), base());
  }
}

/** Takes parts that the caller brings, by their names. */
export function supply(given: Readonly<Record<string, BufferSource | WebAssembly.Module>>): void {
  for (const [name, bytes] of Object.entries(given)) {
    const part = parts.find((part) => part.name === name);
    if (part === undefined) {
      throw new TypeError(`there is no part '${name}'; there are ${parts.map(({ name }) => name).join(", ")}`);
    }
    attempt(part, () => {
      part.compiled = bytes instanceof WebAssembly.Module ? bytes : new WebAssembly.Module(bytes);
    });
  }
}

/** Begins to fetch what is not there. Whoever waits for it, or needs it, learns of what goes wrong. */
export function prefetch(): void {
  for (const part of parts) {
    fetched(part).catch(() => undefined);
  }
}

/** Resolves when all parts are loaded. What could not be fetched before is tried again. */
export async function partsReady(): Promise<void> {
  await Promise.all(parts.map(fetched));
  for (const part of parts) {
    if (!part.loaded) {
      try {
        adopt(part, await WebAssembly.instantiate(await fetched(part), imports()));
      } catch (why) {
        throw failed(part, why);
      }
    }
  }
}

function fetched(part: Part): Promise<WebAssembly.Module> {
  if (part.compiled !== undefined) {
    return Promise.resolve(part.compiled);
  }
  part.arriving ??= compile(part).then(
    (compiled) => (part.compiled ??= compiled),
    (why: unknown) => {
      delete part.arriving;
      throw failed(part, why);
    },
  );
  return part.arriving;
}

async function compile(part: Part): Promise<WebAssembly.Module> {
  const url = part.url();
  const response = await fetch(url);
  if (!response.ok) {
    throw new Error(`${url.href}: ${response.status} ${response.statusText}`);
  }
  // Compiled while it arrives, where the server says what it is.
  return response.headers.get("content-type") === "application/wasm"
    ? WebAssembly.compileStreaming(response)
    : WebAssembly.compile(await response.arrayBuffer());
}

function imports(): WebAssembly.Imports {
  if (pool === undefined) {
    throw new Error("the module itself is not loaded");
  }
  return { [POOL]: pool };
}

function adopt(part: Part, { exports }: WebAssembly.Instance): void {
  Object.assign(pool ?? {}, exports);
  part.loaded = true;
}

function attempt(part: Part, load: () => void): void {
  try {
    load();
  } catch (why) {
    throw failed(part, why);
  }
}

/** What is thrown for a part that cannot be loaded. Nothing of it is kept, so that it can be tried again. */
function failed(part: Part, cause: unknown): Error {
  delete part.compiled;
  delete part.arriving;
  return notLoaded(`the part '${part.name}' of the module`, cause);
}

/** An error that says what is not there, and why. */
export function notLoaded(what: string, cause: unknown): Error {
  const why = cause instanceof Error ? cause.message : String(cause);
  return Object.assign(new Error(`${what} is not loaded: ${why}`, { cause }), { name: "QcowError", code: "not_loaded" });
}

function base(): string {
  return typeof location === "undefined" ? import.meta.url : location.href;
}
