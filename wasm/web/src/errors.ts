/** Errors of the package, as they come from the worker. */

import type { QcowError } from "qcowkit/client";

export function isQcowError(error: unknown): error is QcowError {
  return error instanceof Error && error.name === "QcowError";
}
