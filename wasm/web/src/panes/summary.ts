/** What an image is, how it is, and where its space went: always in sight. */

import { html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import type { Analysis, Ledger, QcowError, Reference } from "qcowkit/client";
import { bytes, listed, percent, plural, sentence } from "../format.ts";
import { HOST_KINDS, kindOfClass, TITLES } from "../kinds.ts";
import type { Facts, Input } from "../session.ts";
import { View } from "../view.ts";
import "../ui/swatch.ts";

const FEATURE_HELP: Readonly<Record<string, string>> = {
  "dirty": "Refcounts may lag behind: they have to be repaired before use.",
  "corrupt": "The image is marked corrupt: it may be repaired, not written.",
  "external data file": "Guest data are in another file, where host and guest offsets are the same.",
  "compression type": "Clusters are packed with another method than deflate.",
  "extended L2 entries": "Clusters are divided into 32 subclusters.",
  "lazy refcounts": "Refcounts may be written late, for speed.",
  "bitmaps": "Persistent dirty bitmaps are consistent.",
  "raw external data": "The data file can be read as a raw image by itself.",
};

const METADATA = new Set(["header", "l1_table", "refcount_table", "refcount_blocks", "l2_tables", "snapshot_metadata", "bitmap_metadata", "encryption_header"]);

@customElement("qcow-summary")
export class Summary extends View {
  protected override render(): unknown {
    const { facts, reports, opened, edits } = this.session;
    if (facts === undefined) {
      return nothing;
    }
    const analysis = reports.analysis.state === "ready" ? reports.analysis.value : undefined;
    return html`<section class="summary" aria-label="Summary">
      <div class="summary-head">
        <h1>${opened?.name ?? "Image"}</h1>${this.#health(facts)}
        ${edits.length > 0 ? html`<span class="chip accent">${plural(edits.length, "edit")} in memory</span>` : nothing}
        <div class="chips">${this.#chips(facts)}</div>
      </div>
      ${facts.problem === undefined ? nothing : html`<p class="message error" role="alert"><strong>This image cannot be opened as a disk.</strong> ${sentence(facts.problem.message)} ${whatNow(facts.problem)}</p>`}
      ${this.session.missing.map((one) => missing(one, opened))}
      ${this.#key(facts)}
      <dl class="numbers">
        ${number("Disk", facts.virtualSize === 0 && facts.problem !== undefined ? "–" : bytes(facts.virtualSize), facts.virtualSize)}
        ${number("File", bytes(facts.fileLength), facts.fileLength)}
        ${number("Clusters", facts.clusterSize === 0 ? "–" : bytes(facts.clusterSize), facts.clusterSize)}
        ${analysis === undefined ? nothing : totals(analysis).map(([name, value]) => number(name, bytes(value), value))}
      </dl>
      ${analysis === undefined ? (reports.analysis.state === "failed" ? (reports.analysis.why === facts.problem?.message ? nothing : html`<p class="message">The space ledger cannot be shown. ${sentence(reports.analysis.why)}</p>`) : html`<div class="ledger-wait" aria-hidden="true"></div>`) : ledger(analysis.ledger)}
      ${analysis?.data_file ? html`<h3>External data file</h3>${ledger(analysis.data_file)}` : nothing}
    </section>`;
  }

  #health(facts: Facts): unknown {
    const { check } = this.session.reports;
    const badge = (kind: string, text: string) => html`<button type="button" class="badge ${kind}" @click=${() => this.session.show("check")}>${text}</button>`;
    if (check.state === "ready") {
      const { corruptions, leaks, check_errors } = check.value;
      return corruptions > 0 ? badge("bad", plural(corruptions, "corruption")) : check_errors > 0 ? badge("bad", "not fully checked")
        : leaks > 0 ? badge("fair", plural(leaks, "leaked cluster")) : facts.problem === undefined ? badge("good", "clean") : badge("bad", "cannot be opened");
    }
    return check.state === "failed" ? badge("bad", "cannot be checked") : html`<span class="badge wait">checking…</span>`;
  }

  #chips(facts: Facts): unknown {
    const data = facts.info?.["format-specific"].data;
    const chip = (text: string, about: string, kind = "") => html`<span class="chip ${kind}" tabindex="0" data-tip=${about}>${text}</span>`;
    const features = "value" in facts.header ? facts.header.value.features : [];
    return html`
      ${data === undefined ? nothing : html`${chip(`version ${data.compat === "1.1" ? 3 : 2}`, `compat=${data.compat}`)}${chip(`${data["refcount-bits"]}-bit refcounts`, "How many users a cluster can have.")}${chip(data["compression-type"], "How compressed clusters are packed.")}`}
      ${facts.info?.encrypted === true ? chip(`encrypted, ${data?.encrypt?.format ?? ""}`, "Guest data need the password; everything else is shown without it.", "accent") : nothing}
      ${features.map((feature) => chip(feature.name, FEATURE_HELP[feature.name] ?? `${feature.kind} feature, bit ${feature.bit}${feature.known ? "" : ": not known here"}`, feature.known ? "" : "bad"))}
      ${facts.info?.snapshots === undefined ? nothing : chip(plural(facts.info.snapshots.length, "snapshot"), listed(facts.info.snapshots.map((one) => one.name)))}
      ${data?.bitmaps === undefined ? nothing : chip(plural(data.bitmaps.length, "bitmap"), listed(data.bitmaps.map((one) => one.name)))}
      ${facts.info?.["backing-filename"] === undefined ? nothing : chip(`on ${facts.info["backing-filename"]}`, "The backing file: drop the folder that has both to read through it. Nothing that an image names is opened by itself.")}`;
  }

  /** The password of an encrypted image. */
  #key(facts: Facts): unknown {
    const { opened } = this.session;
    const locked = facts.problem?.code === "wrong_key" || facts.problem?.code === "encrypted";
    if (opened === undefined || !(locked || (facts.info?.encrypted === true && opened.key === undefined))) {
      return nothing;
    }
    const open = (event: SubmitEvent): void => {
      event.preventDefault();
      const key = String(new FormData(event.target as HTMLFormElement).get("key"));
      if (this.session.mayLeave()) {
        void this.session.unlock(key);
      }
    };
    return html`<form class="line key" @submit=${open}><label>Password <input type="password" name="key" required autocomplete="off"></label><button type="submit">Unlock</button>
      <span class="muted">Needed to read and write guest data; it stays in this page.</span></form>`;
  }
}

/** What is left to do with an image that cannot be opened as a disk. */
function whatNow(problem: QcowError): unknown {
  switch (problem.code) {
    case "not_qcow2":
      return html`The first four bytes of a qcow2 image are <code>51 46 49 fb</code>; raw images have no structure to be looked at.`;
    case "corrupt":
      return "What can be shown is shown; Check may be able to repair it.";
    default:
      return "What can be shown is shown.";
  }
}

/** A file that the image names and that was not given. */
function missing(one: Reference, opened: Input | undefined): unknown {
  const whose = one.depth === 0 ? "This image" : `Layer ${one.depth} of the chain`;
  const what = one.role === "backing_file" ? `${whose} builds on` : `${whose} keeps its guest data in`;
  const how = opened?.input instanceof Blob ? "Choose or drop it together with the image, or the folder that holds both." : "Download both to open them together: an image is opened by its address alone.";
  return html`<p class="message error" role="status" data-missing=${one.role}><strong>${what} “${one.name === "" ? "a file without a name" : one.name}”, which is not among the files that were given.</strong>
    What would be read from there cannot be shown; everything else is. Nothing that an image names is opened by itself, and nothing outside of what was given can be. ${how}</p>`;
}

function number(name: string, text: string, value: number): unknown {
  return html`<div class="number"><dt>${name}</dt><dd data-value=${value}>${text}</dd></div>`;
}

function totals(analysis: Analysis): [string, number][] {
  const of = (test: (name: string) => boolean): number => analysis.ledger.classes.filter((line) => test(line.class)).reduce((sum, line) => sum + line.bytes, 0);
  const { reclaim } = analysis;
  const gain = [reclaim.punch_free, reclaim.discard_retained, reclaim.truncate_end, reclaim.repair_leaks];
  const data = new Set(["live_data", "compressed_data", "only_in_snapshots"]);
  return [
    ["Data", of((name) => data.has(name)) + (analysis.data_file?.classes.find((line) => line.class === "live_data")?.bytes ?? 0)],
    ["Metadata", of((name) => METADATA.has(name))],
    ["Reclaimable", gain.reduce((sum, one) => sum + one.host_bytes + one.host_bytes_unknown, 0)],
  ];
}

/** The space ledger as a bar, with every class that occurs below it. */
function ledger(found: Ledger): unknown {
  const lines = found.classes.filter((line) => line.bytes > 0);
  const total = Math.max(1, found.file_length);
  let at = 0;
  const parts = lines.map((line) => {
    const [start, width] = [at, (1000 * line.bytes) / total];
    at += width;
    const kind = HOST_KINDS[kindOfClass(line.class)];
    return svg`<rect class="kind-${kind?.key}" x=${start} width=${Math.max(1.5, width)} height="22" fill="url(#pattern-${kind?.key})"><title>${TITLES[line.class]}: ${bytes(line.bytes)}</title></rect>`;
  });
  return html`<figure class="ledger">
    <svg viewBox="0 0 1000 22" preserveAspectRatio="none" role="img" aria-label="Space ledger: ${lines.map((line) => `${TITLES[line.class]} ${percent(line.bytes, total)}`).join(", ")}">
      <defs>${HOST_KINDS.map((kind) => svg`<pattern id="pattern-${kind.key}" class="kind-${kind.key}" width="8" height="8" patternUnits="userSpaceOnUse"><rect class="ground" width="8" height="8"></rect>${mark(kind.pattern)}</pattern>`)}</defs>
      ${parts}
    </svg>
    <ul class="ledger-lines" data-ledger>${lines.map((line) => {
      const kind = HOST_KINDS[kindOfClass(line.class)];
      return html`<li data-class=${line.class} data-bytes=${line.bytes}><qcow-swatch .kind=${kind}></qcow-swatch> ${TITLES[line.class]} <strong>${bytes(line.bytes)}</strong> <span class="muted">${percent(line.bytes, total)}</span></li>`;
    })}</ul>
    ${found.overlapping_bytes > 0 ? html`<p class="message error">${bytes(found.overlapping_bytes)} are claimed by structures that contradict each other.</p>` : nothing}
  </figure>`;
}

/** The patterns of the map, drawn with shapes. */
function mark(pattern: string): unknown {
  switch (pattern) {
    case "solid": return svg`<rect class="full" width="8" height="8"></rect>`;
    case "vertical": return svg`<rect class="half" width="8" height="8"></rect><rect class="full" width="3" height="8"></rect>`;
    case "horizontal": return svg`<rect class="half" width="8" height="8"></rect><rect class="full" width="8" height="3"></rect>`;
    case "diagonal": return svg`<rect class="soft" width="8" height="8"></rect><path class="line" d="M-2 10L10-2M-2 2L2-2M6 10L10 6"></path>`;
    case "cross": return svg`<rect class="soft" width="8" height="8"></rect><path class="line" d="M0 0L8 8M8 0L0 8"></path>`;
    case "checker": return svg`<rect class="soft" width="8" height="8"></rect><rect class="full" width="4" height="4"></rect><rect class="full" x="4" y="4" width="4" height="4"></rect>`;
    default: return svg`<rect class="soft" width="8" height="8"></rect><rect class="full" x="3" y="3" width="2" height="2"></rect>`;
  }
}
