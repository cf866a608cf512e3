// Compiled, never run: the published types allow what the documentation shows.
import { version } from "qcowkit";
import init from "qcowkit/web";

export async function uses(): Promise<string> {
  await init();
  return version();
}
