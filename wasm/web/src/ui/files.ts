/** What a person gives to be opened: files, a folder with a backing chain, an address. */

import { isQcowError } from "../errors.ts";
import { reason } from "../format.ts";
import { headerOf, session } from "../session.ts";

/** Files of a folder that are looked at. */
const MAX_FILES = 256;

/** A file with its place among those that came with it. */
export interface Given {
  /** Folders and name, divided by `/`. */
  readonly path: string;
  readonly file: File;
}

/** The files of a choice. */
export function chosen(files: Iterable<File>): Given[] {
  return Array.from(files, (file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/** The files of a drop, those in folders too. */
export async function dropped(transfer: DataTransfer): Promise<Given[]> {
  const plain = chosen(transfer.files);
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (entries.every((entry) => entry === null)) {
    return plain;
  }
  const files: Given[] = [];
  for (const entry of entries) {
    await collect(entry, files);
  }
  return files;
}

async function collect(entry: FileSystemEntry | null, into: Given[]): Promise<void> {
  // One more than are looked at, to know that there are more.
  if (entry === null || into.length > MAX_FILES) {
    return;
  }
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    into.push({ path: entry.fullPath.replace(/^\//, "") || file.name, file });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (some.length === 0) {
      return;
    }
    for (const one of some) {
      await collect(one, into);
    }
  }
}

/** Says why there is nothing to open; an image that is open stays open. */
export function refuse(title: string, error: unknown): void {
  if (session.state === "open") {
    session.notice = `${title}: ${reason(error)}`;
    session.say(session.notice);
    session.changed();
  } else {
    session.fail(title, error);
  }
}

/** Opens one file; of several, the one at the top of the chain, with the others to be found by name. */
export async function openFiles(all: readonly Given[]): Promise<void> {
  const files = all.slice(0, MAX_FILES);
  const [only] = files;
  if (only === undefined) {
    refuse("Nothing to open", new Error("There is no file in what was dropped or chosen."));
    return;
  }
  if (files.length === 1) {
    await session.open({ name: only.file.name, path: only.path, input: only.file });
    return;
  }
  try {
    const tops = await topOf(files);
    const [top] = tops;
    if (top === undefined) {
      refuse("Nothing to open", new Error("None of these files is a qcow2 image that no other one builds on."));
      return;
    }
    await session.open({ name: top.file.name, path: top.path, input: top.file, files: Object.fromEntries(files.map(({ path, file }) => [path, file])) });
    const notes = [
      ...(tops.length > 1 ? [`Opened ${top.path}. Not opened: ${tops.slice(1).map(({ path }) => path).join(", ")}.`] : []),
      ...(all.length > MAX_FILES ? [`There are more than ${MAX_FILES} files: only the first ${MAX_FILES} were looked at.`] : []),
    ];
    if (notes.length > 0) {
      session.notice = notes.join(" ");
      session.changed();
    }
  } catch (error) {
    refuse("These files cannot be read", error);
  }
}

/** Images that no other file is built on, the newest first. */
async function topOf(files: readonly Given[]): Promise<Given[]> {
  const named = new Set<string>();
  const images: Given[] = [];
  for (const given of files) {
    const { file } = given;
    try {
      const image = await session.engine.open(file, { tolerant: true, read_only: true });
      const header = await headerOf(image);
      await image.close();
      if ("value" in header) {
        images.push(given);
        for (const name of [header.value.backing_file, header.value.data_file]) {
          named.add(name?.slice(name.lastIndexOf("/") + 1) ?? "");
        }
      }
    } catch (error) {
      if (!isQcowError(error)) {
        throw error;
      }
    }
  }
  return images.filter(({ file }) => !named.has(file.name)).sort((a, b) => b.file.lastModified - a.file.lastModified);
}

/** An address: an image on this server or another. */
export async function openUrl(text: string): Promise<void> {
  let url: URL;
  try {
    url = new URL(text.trim(), location.href);
  } catch {
    session.fail("No address", new Error(`“${text}” is not an address.`));
    return;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    session.fail("No address", new Error("Only http and https addresses can be opened."));
    return;
  }
  await session.open({ name: url.pathname.split("/").pop() || url.host, input: { url: url.href } });
}

/** Samples that were fetched. */
const samples = new Map<string, Promise<Blob>>();

/** An image that comes with the page, packed. */
function sample(name: string): Promise<Blob> {
  const fetched = samples.get(name) ?? fetchSample(name);
  samples.set(name, fetched);
  // What failed is tried again when it is asked for.
  fetched.catch(() => samples.delete(name));
  return fetched;
}

async function fetchSample(name: string): Promise<Blob> {
  const answer = await fetch(new URL(`samples/${name}.gz`, document.baseURI));
  if (!answer.ok) {
    throw new Error(`the server answered ${answer.status}`);
  }
  return answer.blob();
}

/** Fetches what may be wanted when the network is gone: the worker with the module, and the samples. */
export function prepare(names: readonly string[]): void {
  session.engine.version().catch(() => undefined);
  for (const name of names) {
    sample(name).catch(() => undefined);
  }
}

export async function openSample(name: string): Promise<void> {
  try {
    const packed = await sample(name);
    // Some servers say that the file is packed, and the browser has unpacked it by now.
    const head = new Uint8Array(await packed.slice(0, 2).arrayBuffer());
    const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
    const image = head[0] === 0x1f && head[1] === 0x8b ? await new Response(stream).blob() : packed;
    await session.open({ name, input: new File([image], name) });
  } catch (error) {
    session.fail(`${name} cannot be fetched`, error);
  }
}
