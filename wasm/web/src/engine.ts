/** The worker that holds the module and the images. */

import { connect } from "qcowkit/client";
import type { RemoteQcowkit } from "qcowkit/client";
import workerUrl from "./worker.ts?worker&url";

/** The files of the worker cannot be had, or it came to an end by itself. */
export type Failed = () => void;

/**
 * Starts a worker; `failed` is called when no call to it will succeed any more. A sealed one begins with a blob of this page, so that it has this page's policy: whatever happens in
 * it, it cannot speak to another server. One that is not sealed is started only when a person asks for an image of
 * another server by its address.
 */
export function startEngine(sealed: boolean, failed: Failed): RemoteQcowkit {
  const address = new URL(workerUrl, import.meta.url).href;
  const worker = new Worker(sealed ? importing(address) : address, { type: "module", name: "qcowkit" });
  const engine = connect(worker);
  worker.addEventListener("error", failed);
  return engine;
}

function importing(address: string): string {
  return URL.createObjectURL(new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" }));
}
