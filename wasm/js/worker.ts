/**
 * The worker's side: run it in a dedicated module worker, and talk to it with `connect` of `qcowkit/client`.
 *
 * ```ts
 * // worker.ts
 * import init from "qcowkit/web";
 * import { serve } from "qcowkit/worker";
 * serve(() => init());                            // or init({ parts: "demand" }), as worker-main does
 * ```
 *
 * A file that is itself a worker, for pages without a bundler, is `qcowkit/worker-main`.
 *
 * @module
 */

import { fillsAtOnce, object, refusal, text } from "./arguments.js";
import { composeBlob, Image, MemorySource, Replay, replay, Trace } from "./api.js";
import type { LabDisk } from "./api.js";
import { errorCodes, limits, version } from "./api.js";
import type { ReplayOptions } from "./lab.types.js";
import { BlobSource, PrivateFileSource, UrlSource } from "./sources.js";
import { stopped, Stops } from "./stop.js";
import type { ByteSource, Layer, OpenOptions, Reference } from "./types.js";
import { buffersOf, errorOut, isHandle } from "./wire.js";
import type { Handle, Reply, Request } from "./wire.js";

export * from "./sources.js";

/** What a page can name to be opened in its worker. */
export type RemoteInput = Blob | Uint8Array | ArrayBuffer | { readonly url: string } | { readonly opfs: string };

/** Options for opening from a page. Instead of a resolver: files by the names that the images may ask for. */
export interface RemoteOpenOptions extends Omit<OpenOptions, "resolver"> {
  /**
   * Files that images of the chain may name, by their paths; `identity` is the path of the image itself. What an image
   * names is looked for beside it (its name is relative to the image's folder), then by the name as it stands, then by
   * the last part of the name, if only one file has it. What is not found is refused.
   */
  readonly files?: Readonly<Record<string, RemoteInput | { readonly input: RemoteInput; readonly format?: "qcow2" | "raw" }>>;
  /** Told what was not found. With `tolerant` or `ignore_missing_files`, the image opens without it. */
  readonly missing?: (reference: Reference) => void;
}

/** What the worker does besides the methods of its handles. */
export interface WorkerCalls {
  open(input: RemoteInput, options?: RemoteOpenOptions): Promise<Image>;
  create(...args: Parameters<typeof Image.create>): Image;
  audit(input: RemoteInput, options?: { deep?: boolean; max_virtual_size?: number }): Promise<ReturnType<typeof Image.audit>>;
  /** The edited file, composed with the Blob that the image was opened on; a copy for other inputs. */
  blob(image: Image): Blob;
  parseTrace(...args: Parameters<typeof Trace.parse>): Trace;
  churn(...args: Parameters<typeof Trace.churn>): Trace;
  replay(trace: Trace, disk: LabDisk, options?: ReplayOptions): ReturnType<typeof replay>;
  beginReplay(...args: ConstructorParameters<typeof Replay>): Replay;
  version(): string;
  limits(): ReturnType<typeof limits>;
  errorCodes(): ReturnType<typeof errorCodes>;
}

type Held = Image | Trace | Replay;

/** The parts of a worker's global scope that are used. */
interface Scope {
  postMessage(message: unknown, transfer: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
}

/**
 * Answers the page's calls, one after the other, once the module is loaded. With a function, a module that could not be
 * loaded is loaded anew by the next call; a promise that failed fails every call.
 */
export function serve(ready: Promise<unknown> | (() => Promise<unknown>) = Promise.resolve(), scope: Scope = globalThis as unknown as Scope): void {
  const server = new Server((reply) => scope.postMessage(reply, "value" in reply ? buffersOf(reply.value) : []));
  const begin = typeof ready === "function" ? ready : () => ready;
  let loaded = begin();
  let queue: Promise<unknown> = loaded.catch(() => undefined);
  const answer = async (request: Request, since: number): Promise<void> => {
    try {
      await loaded.catch(() => (loaded = begin()));
    } catch (why) {
      server.fail(request, why);
      return;
    }
    await server.answer(request, since);
  };
  scope.addEventListener("message", ({ data }: MessageEvent<Request>) => {
    const since = performance.now();
    queue = queue.then(() => answer(data, since));
  });
}

class Server {
  readonly #send: (reply: Reply) => void;
  readonly #held = new Map<number, Held>();
  readonly #sources = new Map<Image, { blob?: Blob; sources: ByteSource[] }>();
  readonly #stops = new Stops();
  #next = 1;

  constructor(send: (reply: Reply) => void) {
    this.#send = send;
  }

  fail({ id }: Request, why: unknown): void {
    this.#send({ id, error: errorOut(why) });
  }

  async answer(request: Request, since: number): Promise<void> {
    const { id, target, method } = request;
    try {
      // What is closed is closed.
      this.#stops.begin(method === "close" ? undefined : request.token, since);
      const args = request.args.map((found) => this.#decode(id, found));
      this.#send({ id, value: this.#encode(await (target === null ? this.#call(method, args) : this.#use(target, method, args))) });
    } catch (error) {
      this.fail(request, this.#stops.ended ? stopped() : error);
    }
  }

  /** A method of a handle, or one of its properties. */
  #use(target: number, method: string, args: unknown[]): unknown {
    const held = this.#held.get(target);
    if (held === undefined) {
      if (method === "close") {
        return undefined;
      }
      throw closed();
    }
    if (method === "close") {
      this.#held.delete(target);
      held.close();
      this.#release(held);
      return undefined;
    }
    const own = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(held), method);
    if (own === undefined || method === "constructor") {
      throw new TypeError(`no method ${method}`);
    }
    return own.get ? own.get.call(held) : (own.value as (...args: unknown[]) => unknown).apply(held, args);
  }

  #release(held: Held): void {
    if (held instanceof Image) {
      for (const source of this.#sources.get(held)?.sources ?? []) {
        source.close?.();
      }
      this.#sources.delete(held);
    }
  }

  readonly #calls: WorkerCalls = {
    open: (input, options = {}) => this.#open(input, object(options, "options")),
    create: (...args) => Image.create(...args),
    audit: async (input, options) => {
      const { input: opened, source } = await this.#input(input);
      try {
        return Image.audit(opened, options);
      } finally {
        source?.close?.();
      }
    },
    blob: (image) => {
      if (!(image instanceof Image)) {
        throw refusal("invalid_argument", "image must be an image of this worker");
      }
      return composeBlob(image, this.#sources.get(image)?.blob);
    },
    parseTrace: (...args) => Trace.parse(...args),
    churn: (...args) => Trace.churn(...args),
    replay: (...args) => replay(...args),
    beginReplay: (...args) => new Replay(...args),
    version,
    limits,
    errorCodes,
  };

  #call(method: string, args: unknown[]): unknown {
    if (!Object.hasOwn(this.#calls, method)) {
      throw new TypeError(`no method ${method}`);
    }
    return (this.#calls[method as keyof WorkerCalls] as (...args: unknown[]) => unknown)(...args);
  }

  async #open(input: RemoteInput, { files = {}, missing, ...options }: RemoteOpenOptions): Promise<Image> {
    const sources: ByteSource[] = [];
    try {
      // Handles of private storage open asynchronously only, so everything that may be named is opened first.
      const layers = new Map<string, Layer>();
      for (const [name, file] of Object.entries(files)) {
        const { input: named, format } = isInput(file) ? { input: file, format: undefined } : file;
        const opened = await this.#input(named);
        sources.push(...(opened.source ? [opened.source] : []));
        layers.set(name, { input: opened.input, identity: name, ...(format === undefined ? {} : { format }) });
      }
      const resolver = (reference: Reference): Layer | undefined => {
        const found = findLayer(layers, reference);
        if (found === undefined) {
          missing?.(reference);
        }
        return found;
      };
      const opened = await this.#input(input);
      sources.push(...(opened.source ? [opened.source] : []));
      const image = Image.open(opened.input, { ...options, resolver });
      this.#sources.set(image, { sources, ...(input instanceof Blob ? { blob: input } : {}) });
      return image;
    } catch (error) {
      for (const source of sources) {
        source.close?.();
      }
      throw error;
    }
  }

  /** What a page named, as a source that can be stopped. */
  async #input(input: RemoteInput): Promise<{ input: ByteSource; source?: ByteSource }> {
    const opened = await openInput(input);
    const { input: source } = opened;
    const readAt = (offset: number, into: Uint8Array): number => {
      this.#stops.check();
      return source.readAt(offset, into);
    };
    const stoppable = { size: source.size, ...(source.cached === undefined ? {} : { cached: source.cached }), readAt };
    fillsAtOnce(stoppable);
    return { ...opened, input: stoppable };
  }

  #encode(found: unknown): unknown {
    if (found instanceof Error) {
      return errorOut(found);
    }
    const kind = found instanceof Image ? "image" : found instanceof Trace ? "trace" : found instanceof Replay ? "replay" : null;
    if (kind === null) {
      return found;
    }
    const handle: Handle = { $handle: this.#next, $class: kind };
    this.#held.set(this.#next, found as Held);
    this.#next += 1;
    return handle;
  }

  /** Handles become what they stand for; functions, also among options, post a message. */
  #decode(id: number, found: unknown): unknown {
    if (isHandle(found)) {
      const held = this.#held.get(found.$handle);
      if (held === undefined) {
        throw closed();
      }
      return held;
    }
    if (typeof found === "object" && found !== null && "$function" in found) {
      const call = found.$function as number;
      return (...args: unknown[]) => {
        this.#send({ id, call, args });
        this.#stops.check();
      };
    }
    if (typeof found === "object" && found !== null && Object.getPrototypeOf(found) === Object.prototype) {
      return Object.fromEntries(Object.entries(found).map(([key, member]) => [key, this.#decode(id, member)]));
    }
    return found;
  }
}

function closed(): Error {
  return refusal("closed", "the image is closed");
}

function isInput(file: RemoteInput | { readonly input: RemoteInput }): file is RemoteInput {
  return typeof file !== "object" || file === null || !("input" in file);
}

/** The file that an image names. */
function findLayer(layers: ReadonlyMap<string, Layer>, { name, from }: Reference): Layer | undefined {
  const beside = name.startsWith("/") ? undefined : layers.get(joined(from ?? "", name));
  if (beside !== undefined) {
    return beside;
  }
  const last = (path: string): string => path.slice(path.lastIndexOf("/") + 1);
  const alike = [...layers.keys()].filter((path) => last(path) === last(name));
  return layers.get(name) ?? (alike.length === 1 ? layers.get(alike[0] ?? "") : undefined);
}

/** A name that is relative to the folder of the file `from`. What leads out of the top folder leads nowhere. */
function joined(from: string, name: string): string {
  const parts = from.split("/").slice(0, -1);
  for (const part of name.split("/")) {
    if (part === ".." && parts.pop() === undefined) {
      return "";
    }
    if (part !== ".." && part !== "." && part !== "") {
      parts.push(part);
    }
  }
  return parts.join("/");
}

/** Opens what a page named. */
async function openInput(input: RemoteInput): Promise<{ input: ByteSource; source?: ByteSource }> {
  if (input instanceof Blob) {
    return { input: new BlobSource(input) };
  }
  if (input instanceof Uint8Array) {
    return { input: new MemorySource(input) };
  }
  if (input instanceof ArrayBuffer) {
    return { input: new MemorySource(new Uint8Array(input)) };
  }
  if (typeof input !== "object" || input === null || !("url" in input || "opfs" in input)) {
    throw refusal("invalid_argument", "an image comes from a File or Blob, bytes, { url } or { opfs }");
  }
  const source = "url" in input ? await UrlSource.open(text(input.url, "url")) : await PrivateFileSource.open(text(input.opfs, "opfs"));
  return { input: source, source };
}
