/**
 * The entry for pages and workers without a bundler: `await init()` first, or `initSync` with the module's bytes.
 *
 * ```ts
 * import init, { Image } from "qcowkit/web";
 * await init();                                   // fetches qcowkit_bg.wasm and its parts beside this file
 * await init({ module_or_path: "/static/qcowkit_bg.wasm" });  // or from elsewhere
 * ```
 *
 * @module
 */

import start, { initSync as startSync } from "../pkg/qcowkit.js";
import type { InitInput, InitOutput } from "../pkg/qcowkit.js";
import { attach, notLoaded, partsReady, place, prefetch, supply } from "./parts.js";

export * from "./api.js";
export { partsReady } from "./parts.js";

/** How the module is loaded. */
export interface InitOptions {
  /** The module, or where it is: beside this file, unless told otherwise. */
  readonly module_or_path?: InitInput | Promise<InitInput>;
  /**
   * When the parts of the module are loaded, in which is what opening, reading and writing an image does not need:
   *
   * - `"now"`, the default: they are fetched with the module, and `init` is done when all are there;
   * - `"later"`: `init` is done when the module is there, and they follow; `await partsReady()` waits for them;
   * - `"demand"`: in a worker each is fetched when it is first needed; on a page, by `await partsReady()` alone.
   *
   * A worker that needs a part which is not there fetches it, and waits. A page cannot wait: the call throws a
   * `QcowError` with code `not_loaded`, and can be repeated.
   */
  readonly parts?: "now" | "later" | "demand";
  /**
   * Where the file of a part is, such as `qcowkit_check.wasm`: beside the module if that was given by its place, and beside
   * this file otherwise, unless told here.
   */
  readonly locate?: (file: string) => string | URL;
}

/** Loads the module and its parts. What cannot be loaded is an error with code `not_loaded`; it can be called again. */
export default async function init(given?: InitOptions | InitInput | Promise<InitInput>): Promise<InitOutput> {
  const { module_or_path, parts = "now", locate = beside(module_or_path) } = optionsOf(given);
  if (locate !== undefined) {
    place(locate);
  }
  if (parts !== "demand") {
    prefetch();
  }
  const module = await start(module_or_path === undefined ? undefined : { module_or_path }).catch((why: unknown) => {
    throw notLoaded("the module", why);
  });
  attach(module, readNow);
  if (parts !== "demand") {
    const ready = partsReady();
    await (parts === "now" ? ready : undefined);
    // Whoever needs a part, or waits for it, learns of it.
    ready.catch(() => undefined);
  }
  return module;
}

/** What `initSync` takes. */
export interface InitSyncOptions {
  readonly module: BufferSource | WebAssembly.Module;
  /** The parts by their names (`check` is `qcowkit_check.wasm`). A worker fetches others when they are first needed. */
  readonly parts?: Readonly<Record<string, BufferSource | WebAssembly.Module>>;
}

/** Loads the module from its bytes. */
export function initSync(given: InitSyncOptions | InitSyncOptions["module"]): InitOutput {
  const { module, parts = {} } = isPlain(given) ? (given as InitSyncOptions) : { module: given as InitSyncOptions["module"] };
  supply(parts);
  const started = startSync({ module });
  attach(started, readNow);
  return started;
}

function optionsOf(given: InitOptions | InitInput | Promise<InitInput> | undefined): InitOptions {
  if (given === undefined) {
    return {};
  }
  return isPlain(given) ? (given as InitOptions) : { module_or_path: given as InitInput };
}

/** Whether something is options, and not the module or its place. */
function isPlain(given: unknown): boolean {
  return Object.getPrototypeOf(given) === Object.prototype;
}

/** Beside a module whose place is known. */
function beside(module: InitInput | Promise<InitInput> | undefined): InitOptions["locate"] {
  if (typeof module === "string" || module instanceof URL) {
    const at = new URL(module, typeof location === "undefined" ? undefined : location.href);
    // What has no place of its own has nothing beside it.
    return at.protocol === "blob:" || at.protocol === "data:" ? undefined : (file) => new URL(file, at);
  }
  return typeof Request === "function" && module instanceof Request ? (file) => new URL(file, module.url) : undefined;
}

/** Fetches a part in the midst of a call, which only workers can. */
function readNow(url: URL): ArrayBuffer {
  if (typeof document !== "undefined" || typeof XMLHttpRequest === "undefined") {
    throw new Error("it has to be there before it is needed: await partsReady(), or give it to initSync");
  }
  const request = new XMLHttpRequest();
  request.open("GET", url.href, false);
  request.responseType = "arraybuffer";
  request.send();
  if (request.status < 200 || request.status > 299) {
    throw new Error(`${url.href}: ${request.status} ${request.statusText}`);
  }
  return request.response as ArrayBuffer;
}
