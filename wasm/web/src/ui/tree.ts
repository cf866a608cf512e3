/** `<qcow-tree>`: the structures of the file. Branches are read when they are opened. */

import { html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { Field, Region, Structure } from "qcowkit/client";
import { bytes, hex, reason } from "../format.ts";
import { View } from "../view.ts";
import { structureAt } from "./structures.ts";

/** Entries that are added at a time. */
const STEP = 100;
/** Steps that are taken to find a place that was asked for. */
const MAX_STEPS = 20;

interface Node {
  readonly id: number;
  readonly level: number;
  readonly name: string;
  readonly meaning: string;
  readonly fault: string;
  readonly offset: number;
  readonly length: number;
  /** What opens below it. */
  readonly region: Region | undefined;
  open: boolean;
  children: Node[];
  /** Where the next children are read from; undefined when all are there. */
  next: number | undefined;
  /** Fields that were read and are not shown yet. */
  waiting: Field[];
  loaded: boolean;
}

/** A row: a node, or the offer to read more. */
type Row = { readonly node: Node; readonly more: boolean };

const ROOTS: Partial<Record<Structure, Structure>> = {
  l2_table: "l1_table", refcount_block: "refcount_table", bitmap_table: "bitmap_directory", bitmap_data: "bitmap_directory",
};

@customElement("qcow-tree")
export class QcowTree extends View {
  @state() private roots: Node[] = [];
  @state() private current = 0;
  #revision = -1;
  #next = 1;
  #own = false;
  readonly #placed = (): void => void this.#reveal();

  override connectedCallback(): void {
    super.connectedCallback();
    this.session.addEventListener("place", this.#placed);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("place", this.#placed);
  }

  protected override willUpdate(): void {
    if (this.session.revision !== this.#revision && this.session.image !== undefined) {
      this.#revision = this.session.revision;
      void this.session.need("regions").then((regions) => {
        const found = regions !== undefined && "value" in regions ? regions.value : [];
        this.roots = found.map((region) => this.#node(1, region.name, bytes(region.length), "", region.host_offset, region.length, region));
        void this.#reveal();
      });
    }
  }

  #node(level: number, name: string, meaning: string, fault: string, offset: number, length: number, region: Region | undefined): Node {
    this.#next += 1;
    const opens = region?.has_fields === true ? region : undefined;
    return { id: this.#next, level, name, meaning, fault, offset, length, region: opens, open: false, children: [], next: opens?.host_offset, waiting: [], loaded: false };
  }

  get #rows(): Row[] {
    const rows: Row[] = [];
    const add = (node: Node): void => {
      rows.push({ node, more: false });
      if (node.open) {
        node.children.forEach(add);
        if (node.next !== undefined || node.waiting.length > 0) {
          rows.push({ node, more: true });
        }
      }
    };
    this.roots.forEach(add);
    return rows;
  }

  /** Adds children to a node. */
  async #load(node: Node): Promise<void> {
    const { region } = node;
    const { image } = this.session;
    if (region === undefined || image === undefined) {
      return;
    }
    try {
      const end = region.host_offset + region.length;
      while (node.waiting.length < STEP && node.next !== undefined) {
        const from: number = node.next;
        const shown = await image.fields(from, end - from, region.structure, { skip_empty: true });
        if ("error" in shown) {
          throw new Error(shown.error);
        }
        node.waiting.push(...shown.value.fields);
        node.next = shown.value.next !== null && shown.value.next > from && shown.value.next < end ? shown.value.next : undefined;
      }
      for (const field of node.waiting.splice(0, STEP)) {
        node.children.push(this.#node(node.level + 1, field.name, field.meaning, field.fault, field.host_offset, field.length, field.target ?? undefined));
      }
    } catch (error) {
      node.next = undefined;
      node.children.push(this.#node(node.level + 1, "cannot be read", reason(error), "", node.offset, 0, undefined));
    }
    node.loaded = true;
    this.requestUpdate();
  }

  async #toggle(node: Node, open = !node.open): Promise<void> {
    if (node.region === undefined) {
      return;
    }
    node.open = open;
    if (open && !node.loaded) {
      await this.#load(node);
    }
    this.requestUpdate();
  }

  /** Opens the way to the place that the session looks at. */
  async #reveal(): Promise<void> {
    if (this.#own || this.session.place.side !== "host") {
      this.#own = false;
      return;
    }
    const { offset } = this.session.place;
    const [part] = structureAt(this.session, offset, 1);
    const holds = (start: number, length: number): boolean => start <= offset && offset < start + length;
    let level = this.roots;
    let found: Node | undefined;
    const root = this.roots.find((node) => holds(node.offset, node.length))
      ?? this.roots.find((node) => part !== undefined && node.region?.structure === ROOTS[part.structure]);
    for (let node = root; node !== undefined;) {
      found = node;
      if (node.region === undefined) {
        break;
      }
      await this.#toggle(node, true);
      const fits = (child: Node): boolean => holds(child.offset, child.length) || (child.region !== undefined && holds(child.region.host_offset, child.region.length));
      let child = node.children.find(fits);
      for (let step = 0; child === undefined && step < MAX_STEPS && (node.next !== undefined || node.waiting.length > 0); step += 1) {
        await this.#load(node);
        child = node.children.find(fits);
      }
      level = node.children;
      node = child !== undefined && level.includes(child) ? child : undefined;
      if (node !== undefined && holds(node.offset, node.length)) {
        found = node;
        break;
      }
    }
    if (found !== undefined) {
      this.current = found.id;
      await this.updateComplete;
      this.#show(this.querySelector<HTMLElement>(`#tree-${found.id}`));
    }
  }

  /** Scrolls the tree, and nothing around it. */
  #show(item: HTMLElement | null): void {
    if (item === null) {
      return;
    }
    const [frame, box] = [this.getBoundingClientRect(), item.getBoundingClientRect()];
    if (box.top < frame.top || box.bottom > frame.bottom) {
      this.scrollTop += box.top - frame.top - frame.height / 3;
    }
  }

  protected override render(): unknown {
    const rows = this.#rows;
    if (this.session.reports.regions.state === "ready" && "error" in this.session.reports.regions.value) {
      return html`<div class="message error">The structures cannot be shown: ${this.session.reports.regions.value.error}</div>`;
    }
    const known = rows.some((row) => row.node.id === this.current);
    return html`<div role="tree" aria-label="Structures of the file" class="tree" @keydown=${this.#key}>
      ${rows.map((row, index) => row.more ? this.#more(row.node) : this.#item(row.node, row.node.id === this.current || (!known && index === 0)))}
    </div>`;
  }

  #item(node: Node, current: boolean): unknown {
    return html`<div role="treeitem" id="tree-${node.id}" class="tree-item level-${Math.min(node.level, 5)} ${current ? "current" : ""}"
      aria-level=${node.level} aria-expanded=${node.region === undefined ? nothing : node.open ? "true" : "false"}
      aria-selected=${current ? "true" : "false"} tabindex=${current ? "0" : "-1"} @click=${() => this.#pick(node, true)}>
      <span class="twist" aria-hidden="true">${node.region === undefined ? "" : node.open ? "▾" : "▸"}</span>
      <span class="tree-name">${node.name}</span>
      <span class="tree-meaning">${node.meaning}${node.fault === "" ? nothing : html` <span class="error-text">${node.fault}</span>`}</span>
      <span class="tree-offset">${hex(node.offset)}</span>
    </div>`;
  }

  #more(node: Node): unknown {
    return html`<div role="treeitem" aria-level=${node.level + 1} aria-selected="false" tabindex="-1" class="tree-item tree-more level-${Math.min(node.level + 1, 5)}" data-more=${node.id}
      @click=${() => void this.#load(node)}><span class="twist"></span><span class="tree-name">More…</span></div>`;
  }

  #pick(node: Node, toggle: boolean): void {
    this.current = node.id;
    this.#own = true;
    this.session.goTo("host", node.offset);
    if (toggle) {
      void this.#toggle(node);
    }
  }

  readonly #key = (event: KeyboardEvent): void => {
    const items = [...this.querySelectorAll<HTMLElement>(".tree-item")];
    const at = items.findIndex((item) => item === document.activeElement);
    const row = this.#rows[at];
    if (row === undefined) {
      return;
    }
    const focus = (place: number): void => {
      const next = this.#rows[place];
      if (next !== undefined) {
        if (!next.more) {
          this.#pick(next.node, false);
        }
        items[place]?.focus();
      }
    };
    switch (event.key) {
      case "ArrowDown": focus(at + 1); break;
      case "ArrowUp": focus(at - 1); break;
      case "Home": focus(0); break;
      case "End": focus(items.length - 1); break;
      case "ArrowRight":
        if (row.node.open) { focus(at + 1); } else { void this.#toggle(row.node, true); }
        break;
      case "ArrowLeft":
        if (row.node.open && !row.more) { void this.#toggle(row.node, false); } else {
          focus(this.#rows.findIndex((other) => !other.more && (row.more ? other.node === row.node : other.node.children.includes(row.node))));
        }
        break;
      case "Enter":
      case " ":
        if (row.more) { void this.#load(row.node); } else { this.#pick(row.node, true); }
        break;
      default: return;
    }
    event.preventDefault();
  };
}

declare global {
  interface HTMLElementTagNameMap {
    "qcow-tree": QcowTree;
  }
}
