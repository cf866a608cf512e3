/** The worker that holds the module and the images. */

import { connect } from "qcowkit/client";
import type { RemoteQcowkit } from "qcowkit/client";
import workerUrl from "./worker.ts?worker&url";

/**
 * Starts a worker. A sealed one begins with a blob of this page, so that it has this page's policy: whatever happens in
 * it, it cannot speak to another server. One that is not sealed is started only when a person asks for an image of
 * another server by its address.
 */
export function startEngine(sealed: boolean): RemoteQcowkit {
  const address = new URL(workerUrl, import.meta.url).href;
  if (!sealed) {
    return connect(new Worker(address, { type: "module", name: "qcowkit" }));
  }
  const text = `import ${JSON.stringify(address)};`;
  const blob = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  return connect(new Worker(blob, { type: "module", name: "qcowkit" }));
}
