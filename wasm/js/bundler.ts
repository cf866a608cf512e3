/**
 * The entry for bundlers that know `new URL("...", import.meta.url)` and top-level `await` (Vite, webpack, Rollup,
 * Parcel): the module is loaded when it is imported, with its parts. `qcowkit/web` can do without them at first.
 *
 * @module
 */

import init from "./web.js";

export * from "./api.js";

await init();
