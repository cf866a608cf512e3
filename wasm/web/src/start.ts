/** The first page: how to open an image. */

import { html } from "lit";
import { customElement } from "lit/decorators.js";
import { chosen, openFiles, openSample, openUrl } from "./ui/files.ts";
import { View } from "./view.ts";

export const SAMPLES: readonly { file: string; title: string; about: string }[] = [
  { file: "used.qcow2", title: "A used disk", about: "Partitions, packed clusters, a snapshot, a bitmap, gaps after discards." },
  { file: "subclusters.qcow2", title: "Subclusters", about: "Extended L2 entries, zeros that keep their space, zstd." },
  { file: "damaged.qcow2", title: "A damaged image", about: "Leaks, wrong refcounts and a broken entry, to be found and repaired." },
];

@customElement("qcow-start")
export class Start extends View {
  protected override render(): unknown {
    const given = (event: Event): void => {
      void openFiles(chosen((event.target as HTMLInputElement).files ?? []));
    };
    return html`<div class="start">
      <h1>Look into a qcow2 image</h1>
      <p class="lead">Where its space went, how it lies in the file, whether it is sound, and what a discard would do. Nothing is uploaded, and size does not matter: the page reads what it needs from the file where it is.</p>
      <div class="drop-zone">
        <p class="drop-title">Drop an image here</p>
        <p class="muted">or several, or a folder, with a whole backing chain</p>
        <div class="buttons">
          <label class="button primary"><input type="file" class="sr" multiple @change=${given} data-open="file">Choose a file…</label>
          <label class="button"><input type="file" class="sr" webkitdirectory @change=${given} data-open="folder">Choose a folder…</label>
        </div>
      </div>
      <form class="url-line" @submit=${(event: SubmitEvent) => {
        event.preventDefault();
        void openUrl(String(new FormData(event.target as HTMLFormElement).get("url")));
      }}>
        <label for="url">Or the address of one</label>
        <input id="url" name="url" inputmode="url" placeholder="https://example.org/disk.qcow2" required autocomplete="off">
        <button type="submit">Open</button>
        <p class="muted">Read in parts, as needed. Its server has to answer range requests${" "}and allow this page to ask.</p>
      </form>
      <h2>Or try one</h2>
      <ul class="cards">
        ${SAMPLES.map((sample) => html`<li><button type="button" class="card" data-sample=${sample.file} @click=${() => void openSample(sample.file)}><strong>${sample.title}</strong><span>${sample.about}</span></button></li>`)}
        <li><button type="button" class="card lab" @click=${() => { this.session.labOnly = true; this.session.changed(); }}><strong>The discard lab</strong><span>A workload under two discard policies, side by side, as a film. Needs no image.</span></button></li>
      </ul>
    </div>`;
  }
}
