/** The tree of structures beside the bytes. */

import { html } from "lit";
import { customElement } from "lit/decorators.js";
import { View } from "../view.ts";
import "../ui/hex.ts";
import "../ui/tree.ts";

@customElement("pane-structure")
export class StructurePane extends View {
  override connectedCallback(): void {
    super.connectedCallback();
    void this.session.need("host");
  }

  protected override render(): unknown {
    return html`<div class="structure-pane">
      <section aria-label="Structures"><qcow-tree></qcow-tree></section>
      <section aria-label="Bytes"><qcow-hex></qcow-hex></section>
    </div>`;
  }
}
