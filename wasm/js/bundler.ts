/**
 * The entry for bundlers that know `new URL("...", import.meta.url)` and top-level `await` (Vite, webpack): the
 * module is loaded when it is imported, with its parts. `qcowkit/web` can do without them at first. Bundlers that leave
 * such addresses as they are (esbuild) need the files of `pkg/*.wasm` copied beside what they make.
 *
 * @module
 */

import init from "./web.js";

export * from "./api.js";

await init();
