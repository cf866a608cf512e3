/** What leaves the page: the edited image, a patch, a report. All of them are files for the person. */

import type { Part, RemoteImage } from "qcowkit/client";
import { bytes, reason } from "./format.ts";
import { reportHtml } from "./report.ts";
import { session } from "./session.ts";
import { download, renamed } from "./ui/download.ts";

/** Bytes of edits in one patch: it is text in memory. */
const MAX_PATCH = 256 * 1024 * 1024;
const PIECE = 3 * 1024 * 1024;

export type SaveKind = "image" | "data" | "patch" | "script" | "report";

/** Makes a file and hands it to the person. */
export async function save(kind: SaveKind): Promise<void> {
  const { image, opened } = session;
  if (image === undefined || opened === undefined || session.busy !== undefined) {
    return;
  }
  session.busy = "Saving";
  session.changed();
  try {
    const { name } = opened;
    if (kind === "image") {
      const inMemory = !(opened.input instanceof Blob);
      const blob = inMemory ? new Blob([await image.save()]) : await session.engine.blob(image);
      download(session.edits.length > 0 ? renamed(name, "-edited.qcow2") : name, blob);
      // The guest's data may be in the other file.
      session.saved = session.dataFile === undefined;
    } else if (kind === "data") {
      download(session.dataFile ?? "data.raw", new Blob([await image.saveDataFile()]));
      session.saved = true;
    } else if (kind === "report") {
      for (const report of ["analysis", "check", "partitions", "host"] as const) {
        await session.need(report);
      }
      download(renamed(name, "-report.html"), reportHtml(session), "text/html");
    } else {
      const text = kind === "patch" ? await patchJson(image) : await patchScript(image, name);
      download(renamed(name, kind === "patch" ? "-patch.json" : "-patch.sh"), text, kind === "patch" ? "application/json" : "text/x-shellscript");
      session.saved = true;
    }
    session.say("Saved");
  } catch (error) {
    session.notice = `Not saved: ${reason(error)}`;
    session.say(session.notice);
  }
  session.busy = undefined;
  session.changed();
}

/** The parts that differ, checked against the limit. */
async function partsOf(image: RemoteImage): Promise<Part[]> {
  const parts = await image.patch();
  const all = parts.reduce((sum, part) => sum + (part.source === "edits" ? part.length : 0), 0);
  if (all > MAX_PATCH) {
    throw new Error(`the edits are ${bytes(all)}, a patch holds ${bytes(MAX_PATCH)}: save the image`);
  }
  return parts;
}

/** For programs: offsets, lengths, and the bytes in base64. */
async function patchJson(image: RemoteImage): Promise<string> {
  const parts = [];
  for (const { offset, length, source } of await partsOf(image)) {
    parts.push(source === "edits" ? { offset, length, source, data: await base64(image, offset, length) } : { offset, length, source });
  }
  const base = { name: session.opened?.name ?? "", ...(session.opened?.input instanceof Blob ? { length: session.opened.input.size } : {}) };
  return JSON.stringify({ format: "qcowkit-patch", version: 1, base, file_length: await image.fileLength, parts }, null, 1);
}

/** For people: changes a copy of the file in place with tools that every Linux has. */
async function patchScript(image: RemoteImage, name: string): Promise<string> {
  const lines = [
    "#!/bin/sh",
    `# The edits that were made to ${name.replace(/[^\x20-\x7e]/g, "?")} in the qcowkit inspector.`,
    "# Usage: sh PATCH.sh IMAGE. Changes IMAGE in place, so keep a copy; IMAGE must not be in use.",
    "# Needs dd, base64, truncate, fallocate (GNU coreutils and util-linux).",
    "set -eu",
    'image=${1:?usage: sh PATCH.sh IMAGE}',
  ];
  if (session.opened?.input instanceof Blob) {
    lines.push(`[ "$(stat -c %s -- "$image")" = ${session.opened.input.size} ] || { echo "$image is not the file that was edited: its length differs" >&2; exit 1; }`);
  }
  lines.push('put() { base64 -d | dd of="$image" bs=1M seek="$1" oflag=seek_bytes conv=notrunc status=none; }');
  lines.push(`truncate -s ${await image.fileLength} -- "$image"`);
  for (const { offset, length, source } of await partsOf(image)) {
    if (source === "zeros") {
      lines.push(`fallocate -p -o ${offset} -l ${length} -- "$image"`);
      continue;
    }
    for (let at = 0; at < length; at += PIECE) {
      const text = await base64(image, offset + at, Math.min(PIECE, length - at));
      lines.push(`put ${offset + at} <<'EOF'`, ...(text.match(/.{1,76}/g) ?? []), "EOF");
    }
  }
  lines.push("sync -- \"$image\"", "");
  return lines.join("\n");
}

async function base64(image: RemoteImage, offset: number, length: number): Promise<string> {
  let text = "";
  for (let at = 0; at < length; at += PIECE) {
    const read = await image.hostBytes(offset + at, Math.min(PIECE, length - at));
    let binary = "";
    for (let from = 0; from < read.length; from += 0x8000) {
      binary += String.fromCharCode(...read.subarray(from, from + 0x8000));
    }
    text += btoa(binary);
  }
  return text;
}
