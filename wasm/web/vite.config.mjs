// The page as static files that work from any folder of any server, and without one once they were loaded.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

// The service worker keeps what the build made: its list is only known now.
function offline() {
  return {
    name: "offline",
    apply: "build",
    closeBundle() {
      const folder = here("dist");
      const files = readdirSync(folder, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name !== "sw.js")
        .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1).replaceAll("\\", "/"))
        .sort();
      const hash = createHash("sha256");
      files.forEach((file) => hash.update(file).update(readFileSync(join(folder, file))));
      const text = readFileSync(here("src/sw.js"), "utf8")
        .replace("__VERSION__", hash.digest("hex").slice(0, 16))
        .replace("[/* FILES */]", JSON.stringify(files));
      writeFileSync(join(folder, "sw.js"), text);
    },
  };
}

export default defineConfig({
  root: here("."),
  base: "./",
  resolve: { alias: [{ find: /^qcowkit\/(.*)$/, replacement: `${here("../dist")}/$1.js` }] },
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
  },
  worker: { format: "es" },
  plugins: [offline()],
});
