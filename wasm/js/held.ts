/** What holds memory of the module until it is closed. @module */

import { notReading, refusal } from "./arguments.js";

/** A handle of the module. */
export abstract class Held<Raw extends { close(): void }> implements Disposable {
  readonly #raw: Raw;
  #working = false;

  /** @internal */
  protected constructor(raw: Raw) {
    this.#raw = raw;
  }

  /** Gives the memory back; closing again does nothing. */
  close(): void {
    this.use((raw) => raw.close());
  }

  /** The same as {@link Held.close}. */
  free(): void {
    this.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * Calls the handle behind it. Calls that come out of such a call (from a source, a resolver, a progress function, or the
   * getter of an option) are refused with code `locked`. @internal
   */
  use<T>(work: (raw: Raw) => T): T {
    notReading();
    if (this.#working) {
      throw refusal("locked", "the call comes out of another call of the same object, which is not done");
    }
    this.#working = true;
    try {
      return work(this.#raw);
    } finally {
      this.#working = false;
    }
  }
}
