/** Everything that each entry of the package has, whatever way the module is loaded. @module */

import { errorCodes as codes, limits as rawLimits, version as rawVersion } from "../pkg/qcowkit.js";
import type { ErrorCode, Limits, QcowError } from "./types.js";
import { value } from "./values.js";

export { Image } from "./image.js";
export type { Checkpoint, RepairOptions } from "./image.js";
export { Replay, replay, Trace } from "./lab.js";
export type { LabDisk } from "./lab.js";
export { BlobSource, composeBlob, MemorySource, PrivateFileSource, UrlSource } from "./sources.js";
export type * from "./check.types.js";
export type * from "./clusters.types.js";
export type * from "./lab.types.js";
export type * from "./partitions.types.js";
export type * from "./reports.js";
export type * from "./types.js";

/** The version of the package. */
export function version(): string {
  return rawVersion();
}

/** Every `code` that an error can have. */
export function errorCodes(): ErrorCode[] {
  return codes() as ErrorCode[];
}

/** The limits of the module. */
export function limits(): Limits {
  return value(rawLimits());
}

/** Whether something that was thrown is an error of this package. */
export function isQcowError(error: unknown): error is QcowError {
  return error instanceof Error && error.name === "QcowError";
}
