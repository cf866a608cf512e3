/** `<qcow-swatch>`: the colour and pattern of a kind. */

import { html, LitElement } from "lit";
import { customElement, property } from "lit/decorators.js";
import type { Kind } from "../kinds.ts";
import { Palette } from "../map/paint.ts";
import { FollowsTheme } from "./theme.ts";

@customElement("qcow-swatch")
export class QcowSwatch extends LitElement {
  @property({ attribute: false }) kind: Kind | undefined;

  constructor() {
    super();
    new FollowsTheme(this);
  }

  protected override createRenderRoot(): HTMLElement {
    return this;
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
