/** Files for the person: saved by a link, so that nothing is asked of the browser. */

export function download(name: string, data: Blob | string, type = "text/plain"): void {
  const blob = typeof data === "string" ? new Blob([data], { type }) : data;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  // The browser has begun to read by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A name with another ending. */
export function renamed(name: string, ending: string): string {
  const dot = name.lastIndexOf(".");
  return `${dot > 0 ? name.slice(0, dot) : name}${ending}`;
}

/** Rows as comma-separated values. */
export function csv(names: readonly string[], rows: Iterable<readonly (string | number | bigint | boolean | null)[]>): string {
  const cell = (value: string | number | bigint | boolean | null): string => {
    const text = value === null ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [names.join(",")];
  for (const row of rows) {
    lines.push(row.map(cell).join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}
