/** What is painted in the colours of the style sheet has to be painted again when they change. */

import type { ReactiveController, ReactiveControllerHost } from "lit";

/** The page says this when a person turns the theme. */
const TURNED = "themechange";

/** Says that the theme of the page was turned. */
export function themeTurned(): void {
  document.dispatchEvent(new Event(TURNED));
}

/** Updates its host when the theme changes, by the page's button or by the system. */
export class FollowsTheme implements ReactiveController {
  readonly #dark = matchMedia("(prefers-color-scheme: dark)");
  readonly #again: () => void;

  constructor(host: ReactiveControllerHost) {
    this.#again = () => host.requestUpdate();
    host.addController(this);
  }

  hostConnected(): void {
    this.#dark.addEventListener("change", this.#again);
    document.addEventListener(TURNED, this.#again);
  }

  hostDisconnected(): void {
    this.#dark.removeEventListener("change", this.#again);
    document.removeEventListener(TURNED, this.#again);
  }
}
