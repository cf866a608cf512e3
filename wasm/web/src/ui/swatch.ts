/** `<qcow-swatch>`: the colour and pattern of a kind. */

import { html, LitElement } from "lit";
import { customElement, property } from "lit/decorators.js";
import type { Kind } from "../kinds.ts";
import { Palette } from "../map/paint.ts";

@customElement("qcow-swatch")
export class QcowSwatch extends LitElement {
  @property({ attribute: false }) kind: Kind | undefined;
  readonly #dark = matchMedia("(prefers-color-scheme: dark)");
  readonly #repaint = (): void => this.requestUpdate();

  protected override createRenderRoot(): HTMLElement {
    return this;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.#dark.addEventListener("change", this.#repaint);
    document.addEventListener("themechange", this.#repaint);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#dark.removeEventListener("change", this.#repaint);
    document.removeEventListener("themechange", this.#repaint);
  }

  protected override render(): unknown {
    return html`<canvas width="32" height="32" aria-hidden="true"></canvas>`;
  }

  protected override updated(): void {
    const draw = this.querySelector("canvas")?.getContext("2d");
    if (draw && this.kind !== undefined) {
      const palette = new Palette(draw, this, [this.kind], 2);
      draw.fillStyle = palette.fills[0] ?? palette.ground;
      draw.fillRect(0, 0, 32, 32);
    }
  }
}
