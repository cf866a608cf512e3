/**
 * The entry for bundlers that know `new URL("...", import.meta.url)` and top-level `await` (Vite, webpack, Rollup,
 * Parcel): the module is loaded when it is imported.
 *
 * @module
 */

import init from "../pkg/qcowkit.js";

export * from "./api.js";

await init();
