/**
 * Ending work that is under way in a worker without ending the worker. A worker that computes hears no messages; what it
 * can ask meanwhile is whether an address still stands: the page makes one for a piece of data, sends it along with every
 * call, and takes it back to say that the calls shall end. Workers ask while they tell progress and read their sources.
 *
 * @module
 */

/** Milliseconds between two questions. */
const PAUSE = 50;

/** Makes an address that can be taken back; undefined where workers could not ask for it. */
export function makeToken(): string | undefined {
  return typeof XMLHttpRequest === "undefined" ? undefined : URL.createObjectURL(new Blob([""]));
}

/** What calls that were stopped fail with. */
export function stopped(): Error {
  const error = new Error("stopped");
  error.name = "AbortError";
  return error;
}

/** The worker's side: whether the call that it answers shall end. */
export class Stops {
  #token: string | undefined;
  #asked = 0;
  #usable: boolean | undefined;
  /** Whether the call has been told to end. */
  ended = false;

  /** A call begins that came in at `since`, in milliseconds. Throws if it was stopped while it waited. */
  begin(token: string | undefined, since: number): void {
    this.#token = token;
    this.ended = false;
    this.#asked = since;
    this.check();
  }

  /** Throws if the call was stopped. */
  check(): void {
    const now = performance.now();
    if (this.#token === undefined || (!this.ended && now - this.#asked < PAUSE)) {
      return;
    }
    // A page's policy may forbid the question: then nothing can be stopped, and nothing may seem to be.
    this.#usable ??= usable();
    this.ended ||= this.#usable && !stands(this.#token);
    this.#asked = performance.now();
    if (this.ended) {
      throw stopped();
    }
  }
}

function usable(): boolean {
  const token = makeToken();
  if (token === undefined) {
    return false;
  }
  try {
    return stands(token);
  } finally {
    URL.revokeObjectURL(token);
  }
}

function stands(token: string): boolean {
  try {
    const request = new XMLHttpRequest();
    request.open("GET", token, false);
    request.send();
    return true;
  } catch {
    return false;
  }
}
