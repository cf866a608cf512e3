/** What holds memory of the module until it is closed. @module */

/** A handle of the module. */
export abstract class Held<Raw extends { close(): void }> implements Disposable {
  readonly #raw: Raw;

  /** @internal */
  protected constructor(raw: Raw) {
    this.#raw = raw;
  }

  /** Gives the memory back; closing again does nothing. */
  close(): void {
    this.#raw.close();
  }

  /** The same as {@link Held.close}. */
  free(): void {
    this.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** The handle behind it, for the other classes of this package. @internal */
  get raw(): Raw {
    return this.#raw;
  }
}
