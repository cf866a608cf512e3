/** A map with more runs than can be held comes in parts: which one is shown, and the way to the others. */

import { html, nothing } from "lit";
import { hex } from "../format.ts";
import type { Runs } from "../model.ts";
import { session } from "../session.ts";

/** Nothing where the map has one part. */
export function partsLine(runs: Runs): unknown {
  const { side, first, end, next } = runs;
  if (first === 0 && next === undefined) {
    return nothing;
  }
  const before = session.parts[side].findLast((start) => start < first) ?? 0;
  return html`<div class="message parts" role="group" aria-label="Parts of the map">
    <span>More runs than are held at once: this part is ${hex(first)} to ${hex(end)} of the ${side === "host" ? "file" : "disk"}${next === undefined ? ", its end" : ""}.</span>
    <span class="buttons">
      <button type="button" class="small" ?disabled=${first === 0} @click=${() => session.goTo(side, before)}>Part before</button>
      <button type="button" class="small" ?disabled=${next === undefined} @click=${() => session.goTo(side, next ?? first)}>Next part</button>
    </span></div>`;
}
