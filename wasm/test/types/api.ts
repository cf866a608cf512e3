// Compiled, never run: the published types allow what the documentation shows, and refuse what is wrong.
import { type ErrorCode, Image, type ImageInfo, type QcowError, version } from "qcowkit";
import init from "qcowkit/web";

export async function uses(bytes: Uint8Array): Promise<number> {
  await init();
  using image = Image.open(bytes);
  const info: ImageInfo = image.info();
  const first: string | undefined = info.snapshots?.[0]?.name;
  // @ts-expect-error: sizes are numbers
  const wrong: string = info["virtual-size"];
  return info["virtual-size"] + version().length + (first ?? wrong).length;
}

export function told(error: unknown): ErrorCode | undefined {
  if (error instanceof Error && error.name === "QcowError") {
    return (error as QcowError).code;
  }
  return undefined;
}
