/** What a check found, and repair in memory. */

import { html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import type { CheckReport, Finding, RepairPlan, Severity } from "qcowkit/client";
import { bytes, count, hex, json, plural, reason, words } from "../format.ts";
import { download, renamed } from "../ui/download.ts";
import { View, whenReady } from "../view.ts";

const SEVERITIES: readonly { key: Severity; title: string; help: string }[] = [
  { key: "corruption", title: "Corruptions", help: "Data are in danger." },
  { key: "leak", title: "Leaks", help: "Space is lost, no data are in danger." },
  { key: "check_error", title: "Not checked", help: "Could not be checked." },
  { key: "warning", title: "Warnings", help: "Against the specification, without danger." },
];

@customElement("pane-check")
export class CheckPane extends View {
  @state() private plan: { revision: number; plan: RepairPlan } | { revision: number; why: string } | undefined;

  protected override willUpdate(): void {
    void this.session.need("check");
  }

  protected override render(): unknown {
    return html`<div class="scroll-pane">
      ${whenReady(this.session.reports.check, "check", (check) => this.#report(check))}
      ${this.#repair()}
    </div>`;
  }

  #report(check: CheckReport): unknown {
    const clean = isClean(check);
    const row = (name: string, value: number | bigint, text = count(value)) => html`<div class="number"><dt>${name}</dt><dd data-value=${value}>${text}</dd></div>`;
    return html`
      <h2>${clean ? "The image is clean" : "The image has problems"}</h2>
      ${check.incomplete ? html`<p class="message">Something could not be read, so references are missing: leaks are not told.</p>` : nothing}
      <dl class="numbers" data-check>
        ${row("Corruptions", check.corruptions)}${row("Leaked clusters", check.leaks)}${row("Not checked", check.check_errors)}${row("Warnings", check.warnings)}
        ${row("Allocated clusters", check.allocated_clusters)}${row("Fragmented", check.fragmented_clusters)}${row("Compressed", check.compressed_clusters)}
        ${row("Image end", check.image_end_offset, hex(check.image_end_offset))}
      </dl>
      ${SEVERITIES.map((severity) => this.#group(severity, check.findings.filter((finding) => finding.severity === severity.key)))}
      ${check.findings_omitted > 0 ? html`<p class="message">${plural(check.findings_omitted, "more finding")} are not listed.</p>` : nothing}
      <div class="buttons"><button type="button" class="small" @click=${() => download(renamed(this.session.opened?.name ?? "image", "-check.json"), json(check), "application/json")}>JSON</button></div>`;
  }

  #group(severity: { title: string; help: string }, findings: readonly Finding[]): unknown {
    return findings.length === 0 ? nothing : html`<section>
      <h3>${severity.title} <span class="muted">${severity.help}</span></h3>
      <ul class="findings">${findings.map((finding) => html`<li>
        <div><strong>${words(finding.kind)}</strong>${finding.count > 1 ? html` <span class="muted">× ${count(finding.count)}</span>` : nothing}</div>
        <div>${finding.message}</div>
        <div class="links">
          ${this.#link("host", finding.host_offset, "map", "file")}${this.#link("host", finding.host_offset, "structure", "bytes")}
          ${this.#link("guest", finding.guest_offset, "map", "disk")}
        </div></li>`)}</ul></section>`;
  }

  #link(side: "host" | "guest", offset: number | bigint | null, pane: "map" | "structure", title: string): unknown {
    const end = side === "host" ? this.session.facts?.fileLength : this.session.facts?.virtualSize;
    if (offset === null) {
      return nothing;
    }
    return Number(offset) >= (end ?? 0) ? html`<span class="muted">${title} ${hex(offset)}, beyond the end</span>`
      : html`<button type="button" class="link" @click=${() => this.session.goTo(side, Number(offset), pane)}>${title} ${hex(offset)}</button>`;
  }

  #repair(): unknown {
    const { busy, facts, reports: { check } } = this.session;
    const ready = busy === undefined && facts?.readOnly === false;
    // What is clean needs no repair, and no button that asks for one.
    const needed = !(check.state === "ready" && isClean(check.value) && check.value.warnings === 0 && facts?.problem === undefined);
    return html`<section><h2>Repair in memory</h2>
      <p>The file stays as it is: repairs are edits, to be looked at, undone or saved.</p>
      <div class="buttons">
        <button type="button" ?disabled=${!ready} @click=${() => void this.#plan()}>See what a repair would do</button>
        <button type="button" class=${needed ? "primary" : ""} ?disabled=${!ready} @click=${() => void this.session.edit("repair", (image, progress) => image.repair({ progress }))}>Repair all</button>
        <button type="button" ?disabled=${!ready} @click=${() => void this.session.edit("repair of leaks", (image, progress) => image.repair({ level: "leaks", progress }))}>Leaks only</button>
      </div>
      ${this.#planned()}</section>`;
  }

  async #plan(): Promise<void> {
    const { image, revision } = this.session;
    try {
      const plan = await image?.planRepair();
      this.plan = plan === undefined ? undefined : { revision, plan };
    } catch (error) {
      this.plan = { revision, why: reason(error) };
    }
  }

  #planned(): unknown {
    const { plan } = this;
    if (plan === undefined || plan.revision !== this.session.revision) {
      return nothing;
    }
    if ("why" in plan) {
      return html`<p class="message error">There is no plan: ${plan.why}</p>`;
    }
    const { findings, findings_omitted, after, bytes_to_write } = plan.plan;
    return html`<div class="message" role="status">
        ${findings.length === 0 ? "Nothing to repair." : html`${plural(findings.length + findings_omitted, "finding")}, ${bytes(bytes_to_write)} to write. Afterwards: ${plural(after.corruptions, "corruption")}, ${plural(after.leaks, "leak")}.`}
      </div>
      <ul class="findings">${findings.map((finding) => html`<li><div><strong>${words(finding.action)}</strong> <span class="muted">${finding.owner}</span></div><div>${finding.message}</div>
        <div class="links">${this.#link("host", finding.host_offset, "structure", "bytes")}${this.#link("guest", finding.guest_offset, "map", "disk")}</div></li>`)}</ul>`;
  }
}

function isClean(check: CheckReport): boolean {
  return check.corruptions + check.leaks + check.check_errors === 0;
}
