/** What all views of the session have in common. */

import { html, LitElement, nothing } from "lit";
import type { TemplateResult } from "lit";
import { percent, sentence } from "./format.ts";
import { session } from "./session.ts";
import type { Lazy } from "./session.ts";

/** An element in the page's own style sheet that follows the session. */
export abstract class View extends LitElement {
  protected readonly session = session;
  readonly #follow = (): void => this.requestUpdate();

  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    session.addEventListener("change", this.#follow);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    session.removeEventListener("change", this.#follow);
  }
}

/** A report, or why there is none, or how far it is. */
export function whenReady<T>(report: Lazy<T>, what: string, show: (value: T) => unknown): unknown {
  switch (report.state) {
    case "ready":
      return show(report.value);
    case "failed":
      return html`<div class="message error" role="status"><strong>The ${what} cannot be shown.</strong> ${sentence(report.why)}
        <button type="button" class="small" @click=${() => void session.again(report)}>Try again</button></div>`;
    case "loading":
      return html`<div class="message" role="status">Reading the ${what}… ${report.done > 0 ? percent(report.done, 1) : nothing}</div>`;
    case "none":
      return html`<div class="message">…</div>`;
  }
}

/** Help that is shown on hover and focus, and read out. */
export function help(text: string): TemplateResult {
  return html`<span class="help" tabindex="0" role="note" aria-label=${text} data-tip=${text}>?</span>`;
}
