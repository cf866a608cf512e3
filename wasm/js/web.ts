/**
 * The entry for pages and workers without a bundler: `await init()` first, or `initSync` with the module's bytes.
 *
 * ```ts
 * import init, { Image } from "qcowkit/web";
 * await init();                                   // fetches qcowkit_bg.wasm beside this file
 * await init({ module_or_path: "/static/qcowkit_bg.wasm" });  // or from elsewhere
 * ```
 *
 * @module
 */

export { default, initSync } from "../pkg/qcowkit.js";
export * from "./api.js";
