/** Starts the page. */

import "./app.ts";
import { followFragment } from "./hash.ts";
import { reason } from "./format.ts";
import { session } from "./session.ts";
import { SAMPLES } from "./start.ts";
import { prepare } from "./ui/files.ts";

// What nobody caught is told, not hidden behind a page that does nothing.
const tell = (error: unknown): void => {
  const text = `Something failed that should not: ${reason(error)}`;
  // A view that fails each time it is drawn must not be drawn for ever.
  if (session.notice !== text) {
    session.notice = text;
    session.changed();
  }
};
addEventListener("error", (event) => {
  // Browsers report observers that resize twice in a frame this way; nothing failed.
  if (!event.message.startsWith("ResizeObserver")) {
    tell(event.error ?? event.message);
  }
});
addEventListener("unhandledrejection", (event) => tell(event.reason));

addEventListener("beforeunload", (event) => {
  if (session.dirty) {
    event.preventDefault();
  }
});

followFragment();

// Where there is no service worker (it needs https), the page needs no network from here on all the same.
addEventListener("load", () => prepare(SAMPLES.map(({ file }) => file)));

if (import.meta.env.PROD && "serviceWorker" in navigator) {
  navigator.serviceWorker.register(new URL("sw.js", document.baseURI)).catch(() => undefined);
}
