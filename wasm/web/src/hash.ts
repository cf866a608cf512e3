/** Deep links: the pane and the place, in the fragment. Nothing about the image's content. */

import { parseSize, hex } from "./format.ts";
import { PANES, session } from "./session.ts";
import type { Pane } from "./session.ts";

let written = "";

/** What a fragment says. */
function apply(text: string): void {
  const found = new URLSearchParams(text.replace(/^#/, ""));
  const pane = found.get("pane");
  const offset = parseSize(found.get("offset") ?? "");
  const side = found.get("side") === "guest" ? "guest" : "host";
  if (PANES.includes(pane as Pane)) {
    session.pane = pane as Pane;
    session.labOnly = pane === "lab" && session.image === undefined;
  }
  if (offset !== null && session.state === "open") {
    session.goTo(side, offset);
  } else {
    session.changed();
  }
}

/** Follows the fragment, and writes it. A link with an offset waits for the image that is opened first. */
export function followFragment(): void {
  let waiting = location.hash;
  apply(waiting);
  addEventListener("hashchange", () => {
    if (location.hash !== written) {
      waiting = location.hash;
      apply(waiting);
    }
  });
  session.addEventListener("change", () => {
    if (session.state === "open" && waiting !== "") {
      const text = waiting;
      waiting = "";
      apply(text);
      return;
    }
    if (session.state === "open") {
      const { place, pane } = session;
      written = `#offset=${hex(place.offset)}${place.side === "guest" ? "&side=guest" : ""}&pane=${pane}`;
      if (location.hash !== written) {
        history.replaceState(null, "", written);
      }
    }
  });
}
