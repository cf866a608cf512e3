/** `<qcow-inspector>`: the page. */

import { html, nothing } from "lit";
import type { PropertyValues } from "lit";
import { customElement, state } from "lit/decorators.js";
import { sentence } from "./format.ts";
import { View } from "./view.ts";
import { PANES } from "./session.ts";
import type { Pane } from "./session.ts";
import { save } from "./save.ts";
import type { SaveKind } from "./save.ts";
import { dropped, openFiles, refuse } from "./ui/files.ts";
import { themeTurned } from "./ui/theme.ts";
import "./start.ts";
import "./panes/summary.ts";
import "./panes/map.ts";
import "./panes/structure.ts";
import "./panes/runs.ts";
import "./panes/check.ts";
import "./panes/partitions.ts";
import "./panes/layout.ts";
import "./panes/edit.ts";
import "./panes/lab.ts";

const TITLES: Readonly<Record<Pane, string>> = {
  map: "Map", structure: "Structure", runs: "Runs", check: "Check", partitions: "Partitions", layout: "Layout", edit: "Edit", lab: "Lab",
};

const SAVES: readonly [SaveKind, string, string][] = [
  ["image", "Image", "the whole file with its edits"],
  ["data", "Data file", "the guest's data, which are in a file of their own"],
  ["script", "Patch, shell script", "changes a copy of the file in place"],
  ["patch", "Patch, JSON", "for programs"],
  ["report", "Report", "one HTML file"],
];

/** What a link to a place in a view is for. */
const INSIDE: Readonly<Partial<Record<Pane, string>>> = { map: "qcow-map [tabindex='0']", structure: ".hex-lines" };

const THEMES = ["auto", "light", "dark"] as const;

@customElement("qcow-inspector")
export class Inspector extends View {
  @state() private over = false;
  @state() private theme: (typeof THEMES)[number] = "auto";
  @state() private said = "";
  @state() private helping = false;
  /** What is shown, to know when it is something else. */
  #shown = "";
  /** Somebody followed a link to a place, and goes on there. */
  #jumped = false;

  override connectedCallback(): void {
    super.connectedCallback();
    this.session.addEventListener("say", this.#say);
    this.session.addEventListener("jump", this.#jump);
    addEventListener("keydown", this.#key);
    addEventListener("dragover", this.#drag);
    addEventListener("dragleave", this.#leave);
    addEventListener("drop", this.#drop);
    addEventListener("pointerdown", this.#outside);
    addEventListener("focusin", this.#outside);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("say", this.#say);
    this.session.removeEventListener("jump", this.#jump);
    removeEventListener("keydown", this.#key);
    removeEventListener("dragover", this.#drag);
    removeEventListener("dragleave", this.#leave);
    removeEventListener("drop", this.#drop);
    removeEventListener("pointerdown", this.#outside);
    removeEventListener("focusin", this.#outside);
  }

  readonly #say = (event: Event): void => {
    this.said = (event as CustomEvent<string>).detail;
  };

  readonly #jump = (): void => {
    this.#jumped = true;
  };

  readonly #drag = (event: DragEvent): void => {
    event.preventDefault();
    this.over = true;
  };

  readonly #leave = (event: DragEvent): void => {
    this.over = event.relatedTarget !== null;
  };

  readonly #drop = (event: DragEvent): void => {
    event.preventDefault();
    this.over = false;
    if (event.dataTransfer !== null && this.session.mayLeave()) {
      void dropped(event.dataTransfer).then(openFiles).catch((error: unknown) => refuse("This cannot be read", error));
    }
  };

  readonly #key = (event: KeyboardEvent): void => {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement || event.target instanceof HTMLTextAreaElement;
    if (typing || event.altKey) {
      return;
    }
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key === "z") {
      void this.session.undo();
    } else if (control && event.key === "s" && this.session.state === "open") {
      void save("image");
    } else if (!control && event.key === "?") {
      this.helping = true;
    } else if (!control && /^[1-8]$/.test(event.key) && this.session.state === "open") {
      this.session.show(PANES[Number(event.key) - 1] ?? "map");
    } else {
      return;
    }
    event.preventDefault();
  };

  protected override render(): unknown {
    const { session } = this;
    return html`
      <a class="skip" href="#main" @click=${(event: Event) => { event.preventDefault(); this.querySelector<HTMLElement>("#main")?.focus(); }}>Skip to the content</a>
      ${this.#bar()}
      ${session.notice === "" ? nothing : html`<div class="notice" role="alert"><span>${session.notice}</span><button type="button" class="small" @click=${() => { session.notice = ""; session.changed(); }}>Close</button></div>`}
      <main id="main" tabindex="-1">${this.#main()}</main>
      <div class="sr" role="status" aria-live="polite">${this.said}</div>
      ${this.over ? html`<div class="drop-veil" aria-hidden="true">Drop to open</div>` : nothing}
      <dialog aria-labelledby="help-title" @close=${() => { this.helping = false; }}>${this.#help()}</dialog>`;
  }

  protected override updated(_changed: PropertyValues): void {
    const dialog = this.querySelector("dialog");
    if (this.helping && dialog !== null && !dialog.open) {
      dialog.showModal();
    }
    this.#keepFocus();
    document.title = this.session.opened === undefined ? "qcowkit inspector" : `${this.session.dirty ? "• " : ""}${this.session.opened.name} – qcowkit inspector`;
  }

  /** Where the keyboard goes on when what it was on is gone: in the view that a link led to, else at its tab or at its top. */
  #keepFocus(): void {
    const { state, pane, labOnly } = this.session;
    const shown = `${state} ${pane} ${labOnly}`;
    const first = this.#shown === "";
    if (shown === this.#shown) {
      return;
    }
    this.#shown = shown;
    const inside = this.#jumped ? INSIDE[pane] : undefined;
    this.#jumped = false;
    // The views draw themselves a moment later.
    setTimeout(() => {
      const { activeElement } = document;
      const lost = activeElement === null || activeElement === document.body || activeElement.id === "main";
      if (!first && lost && shown === this.#shown) {
        const place = (inside === undefined ? null : this.querySelector<HTMLElement>(inside)) ?? this.querySelector<HTMLElement>(`#tab-${pane}`) ?? this.querySelector<HTMLElement>("#main");
        place?.focus({ preventScroll: true });
      }
    });
  }

  #bar(): unknown {
    const { session } = this;
    const open = session.state === "open";
    return html`<header class="bar">
      <button type="button" class="brand" @click=${() => this.#home()}><img src="./icon.svg" alt="" width="22" height="22"> qcowkit <span class="muted">inspector</span></button>
      <div class="bar-busy" role="status">${session.work === undefined ? nothing : html`<span class="late"><span class="spinner" aria-hidden="true"></span>${session.work}… <button type="button" class="small" @click=${() => void session.stop()}>Stop</button></span>`}</div>
      <div class="buttons">
        ${open ? html`
          <button type="button" ?disabled=${session.edits.length === 0 || session.busy !== undefined} @click=${() => void session.undo()} title="Undo (Ctrl+Z)">Undo</button>
          <details class="menu" @click=${this.#menu} @keydown=${this.#menuKey}><summary>Save</summary><ul>${SAVES.filter(([kind]) => kind !== "data" || session.dataFile !== undefined).map(([kind, title, about]) => html`<li><button type="button" @click=${() => void save(kind)}>${title} <span class="muted">${about}</span></button></li>`)}</ul></details>
          <button type="button" @click=${() => this.#home()}>Open another</button>` : nothing}
        <button type="button" class="icon" aria-label="Theme: ${this.theme}" title="Theme: ${this.theme}" @click=${() => this.#turnTheme()}>${this.theme === "auto" ? "◐" : this.theme === "light" ? "☀" : "☾"}</button>
        <button type="button" class="icon" aria-label="Help" title="Help (?)" @click=${() => { this.helping = true; }}>?</button>
      </div>
    </header>`;
  }

  readonly #menu = (event: Event): void => {
    const menu = event.currentTarget as HTMLDetailsElement;
    if ((event.target as HTMLElement).closest("li") !== null) {
      menu.open = false;
    }
  };

  readonly #menuKey = (event: KeyboardEvent): void => {
    const menu = event.currentTarget as HTMLDetailsElement;
    if (event.key === "Escape" && menu.open) {
      event.stopPropagation();
      menu.open = false;
      menu.querySelector("summary")?.focus();
    }
  };

  /** What is not in the menu closes it, pressed or reached by Tab. */
  readonly #outside = (event: Event): void => {
    const menu = this.querySelector<HTMLDetailsElement>("details.menu[open]");
    if (menu !== null && !(event.target instanceof Node && menu.contains(event.target))) {
      menu.open = false;
    }
  };

  #home(): void {
    if (this.session.mayLeave()) {
      this.session.labOnly = false;
      void this.session.close();
      history.replaceState(null, "", location.pathname + location.search);
    }
  }

  #turnTheme(): void {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length] ?? "auto";
    document.documentElement.dataset["theme"] = this.theme;
    themeTurned();
  }

  #main(): unknown {
    const { session } = this;
    switch (session.state) {
      case "empty":
        return session.labOnly ? html`<pane-lab></pane-lab>` : html`<qcow-start></qcow-start>`;
      case "opening":
        return html`<div class="opening" role="status"><span class="spinner" aria-hidden="true"></span> ${session.busy ?? "Opening"}…</div>`;
      case "failed":
        return html`<div class="failed" role="alert"><h1>${session.failure?.title}</h1><p>${sentence(session.failure?.why ?? "")}</p>
          <div class="buttons"><button type="button" class="primary" @click=${() => void session.close()}>Open something else</button>
            ${session.opened === undefined ? nothing : html`<button type="button" @click=${() => void session.reopen()}>Try again</button>`}</div></div>`;
      case "open":
        return html`<qcow-summary></qcow-summary>${this.#tabs()}`;
    }
  }

  #tabs(): unknown {
    const { session } = this;
    return html`
      <div role="tablist" aria-label="Views" class="tabs" @keydown=${this.#tabKey}>${PANES.map((pane, index) => html`<button type="button" role="tab" id="tab-${pane}"
        aria-selected=${session.pane === pane} aria-controls="pane" tabindex=${session.pane === pane ? 0 : -1} title="${index + 1}" @click=${() => session.show(pane)}>${TITLES[pane]}</button>`)}</div>
      <div role="tabpanel" id="pane" aria-labelledby="tab-${session.pane}" class="pane pane-${session.pane}">${this.#pane()}</div>`;
  }

  #pane(): unknown {
    switch (this.session.pane) {
      case "map": return html`<pane-map></pane-map>`;
      case "structure": return html`<pane-structure></pane-structure>`;
      case "runs": return html`<pane-runs></pane-runs>`;
      case "check": return html`<pane-check></pane-check>`;
      case "partitions": return html`<pane-partitions></pane-partitions>`;
      case "layout": return html`<pane-layout></pane-layout>`;
      case "edit": return html`<pane-edit></pane-edit>`;
      case "lab": return html`<pane-lab></pane-lab>`;
    }
  }

  readonly #tabKey = (event: KeyboardEvent): void => {
    const at = PANES.indexOf(this.session.pane);
    const next = event.key === "ArrowRight" ? at + 1 : event.key === "ArrowLeft" ? at - 1 : event.key === "Home" ? 0 : event.key === "End" ? PANES.length - 1 : undefined;
    if (next !== undefined) {
      event.preventDefault();
      const pane = PANES[(next + PANES.length) % PANES.length] ?? "map";
      this.session.show(pane);
      void this.updateComplete.then(() => this.querySelector<HTMLElement>(`#tab-${pane}`)?.focus());
    }
  };

  #help(): unknown {
    const key = (keys: string, what: string) => html`<tr><th scope="row"><kbd>${keys}</kbd></th><td>${what}</td></tr>`;
    return html`<h2 id="help-title">Keys</h2>
      <table class="data"><tbody>
        ${key("1 … 8", "the views")}${key("Arrow keys", "move on the map, in the tree, in tables and among bytes")}
        ${key("Shift + arrows", "select on the map")}${key("+  −  0", "zoom the map, show everything")}
        ${key("Page up, down, Home, End", "far moves")}${key("Enter", "from the map to the bytes, from a row to the map, along a field")}
        ${key("Esc", "clear the selection")}${key("Ctrl + Z", "undo the last edit")}${key("Ctrl + S", "save the edited image")}
      </tbody></table>
      <h2>What it does with your file</h2>
      <p>The file is read in this page, piece by piece, by a WebAssembly module in a worker. Nothing is sent anywhere: the page's policy allows requests to its own server only, except for an image of another server whose address you enter. Edits are kept in memory; the file itself is never changed.</p>
      <form method="dialog"><button class="primary">Close</button></form>`;
  }
}
