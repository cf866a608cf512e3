/**
 * What crosses between a page and its worker: plain values, which the browser copies, and three things that it cannot
 * copy. Handles stand for images, traces and replays, which stay in the worker; functions are called by message; errors
 * keep their name and fields.
 *
 * @module
 */

/** A call of a method, or the reading of a property. */
export interface Request {
  readonly id: number;
  /** The handle; null for the worker itself. */
  readonly target: number | null;
  readonly method: string;
  readonly args: unknown[];
  /** Stands as long as the call shall go on. */
  readonly token?: string;
}

/** The end of a call, or a call of a function that was among its arguments. */
export type Reply =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly error: unknown }
  | { readonly id: number; readonly call: number; readonly args: unknown[] };

/** An image, a trace or a replay in the worker. */
export interface Handle {
  readonly $handle: number;
  readonly $class: "image" | "trace" | "replay";
}

export function isHandle(found: unknown): found is Handle {
  return typeof found === "object" && found !== null && "$handle" in found;
}

const FIELDS = ["code", "structure", "host_offset", "guest_offset", "index", "depth"] as const;

/** An error as a plain object. */
export function errorOut(error: unknown): unknown {
  if (!(error instanceof Error)) {
    return { $error: { name: "Error", message: String(error) } };
  }
  const fields = Object.fromEntries(FIELDS.flatMap((key) => (key in error ? [[key, Reflect.get(error, key)]] : [])));
  const cause = error.cause === undefined ? {} : { cause: errorOut(error.cause) };
  return { $error: { name: error.name, message: error.message, ...fields, ...cause } };
}

/** The error that a plain object stands for; other values as they are. */
export function errorIn(found: unknown): unknown {
  if (typeof found !== "object" || found === null || !("$error" in found)) {
    return found;
  }
  const { name, message, cause, ...fields } = found.$error as { name: string; message: string; cause?: unknown };
  const error = new Error(message, cause === undefined ? undefined : { cause: errorIn(cause) });
  error.name = name;
  return Object.assign(error, fields);
}

/** Buffers that are given away instead of copied. */
export function buffersOf(found: unknown): ArrayBuffer[] {
  if (ArrayBuffer.isView(found)) {
    return found.buffer instanceof ArrayBuffer ? [found.buffer] : [];
  }
  if (typeof found === "object" && found !== null && !Array.isArray(found)) {
    return Object.values(found).flatMap((member) => (ArrayBuffer.isView(member) ? buffersOf(member) : []));
  }
  return [];
}
