/**
 * The page's side of a worker: the same classes with promises for results. It does not load the module.
 *
 * ```ts
 * import { connect } from "qcowkit/client";
 *
 * const worker = new Worker(new URL("qcowkit/worker-main", import.meta.url), { type: "module" });
 * const qcowkit = connect(worker);
 * const image = await qcowkit.open(file, { tolerant: true });
 * const report = await image.check({ progress: (done) => bar.value = done });
 * await image.close();
 * ```
 *
 * Calls are answered in the order in which they were made. `qcowkit.stop()` ends the calls that were made so far, between two
 * reads of a source or two steps of progress; what they had changed can be taken back by a checkpoint.
 *
 * @module
 */

import type { Image } from "./image.js";
import type { Replay, Trace } from "./lab.js";
import { makeToken } from "./stop.js";
import { errorIn, isHandle } from "./wire.js";
import type { Handle, Reply, Request } from "./wire.js";
import type { WorkerCalls } from "./worker.js";

export type { RemoteInput, RemoteOpenOptions } from "./worker.js";
export type * from "./check.types.js";
export type * from "./clusters.types.js";
export type * from "./lab.types.js";
export type * from "./partitions.types.js";
export type * from "./reports.js";
export type * from "./types.js";

/** Classes whose values stay in the worker. */
type Local = Image | Trace | Replay;

/** A result of the worker as the page gets it. */
type Result<T> = T extends Local ? Remote<T> : T;

/** An argument of the worker as the page gives it. */
type Argument<T> = T extends Local ? Remote<T> : T;

type Arguments<A extends unknown[]> = { [I in keyof A]: Argument<A[I]> };

type Calls<T> = {
  readonly [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: Arguments<A>) => Promise<Result<Awaited<R>>>
    : Promise<T[K]>;
};

/** A value in the worker: its methods give promises, and its properties are promises. */
export type Remote<T> = Calls<Omit<T, "use" | "free" | typeof Symbol.dispose>> & {
  readonly [Symbol.asyncDispose]: () => Promise<void>;
};

/** An image in the worker. */
export type RemoteImage = Remote<Image>;
/** A trace in the worker. */
export type RemoteTrace = Remote<Trace>;
/** A replay in the worker. */
export type RemoteReplay = Remote<Replay>;

/** The worker itself. */
export type RemoteQcowkit = Calls<WorkerCalls> & {
  /**
   * Ends the calls that are under way or wait: they fail with an error named `AbortError`, the images stay open. False
   * where that cannot be done: outside browsers.
   */
  readonly stop: () => boolean;
  /** Ends the worker: what is under way fails, and everything in it is lost. */
  readonly terminate: () => void;
};

/** What a worker is made of here. */
export interface WorkerLike {
  postMessage(message: unknown, transfer: Transferable[]): void;
  terminate(): unknown;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
  addEventListener(type: "error", listener: (event: ErrorEvent) => void): void;
}

/** Properties, which need no call. */
const PROPERTIES: Record<Handle["$class"], readonly string[]> = {
  image: ["virtualSize", "clusterSize", "fileLength", "readOnly", "problem", "editBytes", "closed"] satisfies (keyof Image)[],
  trace: ["length", "end"] satisfies (keyof Trace)[],
  replay: ["done", "length"] satisfies (keyof Replay)[],
};

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
  readonly functions: ((...args: unknown[]) => unknown)[];
}

/** Talks to a worker that runs `serve`. */
export function connect(worker: WorkerLike): RemoteQcowkit {
  const pending = new Map<number, Pending>();
  const handles = new WeakMap<object, Handle>();
  let next = 1;
  let ended: Error | undefined;
  let token: string | undefined;

  const end = (why: Error): void => {
    ended ??= why;
    pending.forEach(({ reject }) => reject(why));
    pending.clear();
  };
  // What cannot be loaded is told without a word.
  const whyFailed = ({ message }: { message?: string }): string =>
    message === undefined || message === "" ? "its file, or one that it imports, cannot be loaded" : message;
  worker.addEventListener("error", (event) => end(new Error(`the worker failed: ${whyFailed(event)}`)));
  worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
    const call = pending.get(data.id);
    if (call === undefined) {
      return;
    }
    if ("call" in data) {
      call.functions[data.call]?.(...data.args);
      return;
    }
    pending.delete(data.id);
    if ("error" in data) {
      call.reject(errorIn(data.error));
    } else {
      call.resolve(isHandle(data.value) ? remote(data.value) : errorIn(data.value));
    }
  });

  const encode = (found: unknown, functions: Pending["functions"]): unknown => {
    if (typeof found === "function") {
      return { $function: functions.push(found as Pending["functions"][number]) - 1 };
    }
    if (typeof found !== "object" || found === null) {
      return found;
    }
    const handle = handles.get(found);
    if (handle !== undefined) {
      return handle;
    }
    return Object.getPrototypeOf(found) === Object.prototype
      ? Object.fromEntries(Object.entries(found).map(([key, member]) => [key, encode(member, functions)]))
      : found;
  };

  const send = (target: number | null, method: string, args: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      if (ended !== undefined) {
        reject(ended);
        return;
      }
      const functions: Pending["functions"] = [];
      token ??= makeToken();
      const request: Request = { id: next, target, method, args: args.map((found) => encode(found, functions)), ...(token === undefined ? {} : { token }) };
      next += 1;
      pending.set(request.id, { resolve, reject, functions });
      worker.postMessage(request, []);
    });

  const remote = (handle: Handle): object => {
    const properties = PROPERTIES[handle.$class];
    const made: object = new Proxy({}, {
      get: (_, key) => {
        if (key === Symbol.asyncDispose) {
          return () => send(handle.$handle, "close", []);
        }
        // A promise of it must not take it for a promise.
        if (typeof key !== "string" || key === "then") {
          return undefined;
        }
        return properties.includes(key)
          ? send(handle.$handle, key, [])
          : (...args: unknown[]) => send(handle.$handle, key, args);
      },
    });
    handles.set(made, handle);
    return made;
  };

  const stop = (): boolean => {
    const can = token !== undefined;
    if (token !== undefined) {
      URL.revokeObjectURL(token);
      token = undefined;
    }
    return can;
  };
  const terminate = (): void => {
    stop();
    end(new Error("the worker was ended"));
    worker.terminate();
  };
  return new Proxy({}, {
    get: (_, key) => {
      if (key === "terminate" || key === "stop") {
        return key === "stop" ? stop : terminate;
      }
      return typeof key !== "string" || key === "then" ? undefined : (...args: unknown[]) => send(null, key, args);
    },
  }) as RemoteQcowkit;
}
