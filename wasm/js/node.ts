/** The entry for Node: the module is loaded when it is imported, its parts when they are needed, and files can be opened where they are. @module */

import { closeSync, fstatSync, openSync, readFileSync, readSync } from "node:fs";
import { initSync } from "../pkg/qcowkit.js";
import { fillsAtOnce } from "./arguments.js";
import { attach } from "./parts.js";
import type { ByteSource } from "./types.js";

export * from "./api.js";

attach(initSync({ module: readFileSync(new URL("../pkg/qcowkit_bg.wasm", import.meta.url)) }), (url) => readFileSync(url));

/** A file on disk, read as needed. Holds it open until `close()` or the end of a `using` block. */
export class FileSource implements ByteSource, Disposable {
  readonly size: number;
  #file: number | undefined;

  /** Opens a file for reading. No lock is taken: the file must not change while an image is open on it. */
  constructor(path: string | URL) {
    this.#file = openSync(path, "r");
    this.size = fstatSync(this.#file).size;
    fillsAtOnce(this);
  }

  readAt(offset: number, into: Uint8Array): number {
    if (this.#file === undefined) {
      throw new Error("the file is closed");
    }
    let done = 0;
    while (done < into.length) {
      const read = readSync(this.#file, into, done, into.length - done, offset + done);
      if (read === 0) {
        break;
      }
      done += read;
    }
    return done;
  }

  close(): void {
    if (this.#file !== undefined) {
      closeSync(this.#file);
      this.#file = undefined;
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
