/** Numbers for people, and back. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] as const;

/** Bytes with a unit: exact where that is short, else three digits. */
export function bytes(count: number | bigint): string {
  let value = Number(count);
  let unit = 0;
  // From there on, rounding would make 1024 of it.
  while (value >= (Number.isInteger(value) ? 1024 : 1023.5) && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const text = Number.isInteger(value) ? String(value) : value >= 1000 ? value.toFixed(0) : value.toPrecision(3);
  return `${text} ${UNITS[unit] ?? ""}`;
}

/** A number with thin spaces between thousands. */
export function count(value: number | bigint): string {
  return value.toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** Words of an error as a sentence of their own; an address that they begin with stays as it is. */
export function sentence(words: string): string {
  const first = /^\w+:\/\//.test(words) ? words.charAt(0) : words.charAt(0).toUpperCase();
  return `${first}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

export function percent(part: number, whole: number): string {
  if (whole <= 0) {
    return "0 %";
  }
  const share = (100 * part) / whole;
  const digits = share === 0 || share >= 10 ? 0 : share >= 0.1 ? 1 : 2;
  return part > 0 && share < 0.01 ? "< 0.01 %" : `${share.toFixed(digits)} %`;
}

/** `snake_case` as words; tables keep their capital letter. */
export function words(name: string): string {
  return name.replaceAll("_", " ").replace(/\bl([12])\b/g, "L$1");
}

/** Names after each other: a hostile image has tens of thousands of them, each as long as it likes. */
export function listed(names: readonly string[], most = 20): string {
  const short = (name: string): string => (name.length > 60 ? `${name.slice(0, 60)}…` : name);
  const more = names.length - most;
  return `${names.slice(0, most).map(short).join(", ")}${more > 0 ? ` and ${count(more)} more` : ""}`;
}

/** A plural: `one(1, "entry", "entries")`. */
export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

const FACTORS: Readonly<Record<string, number>> = { "": 0, k: 1, m: 2, g: 3, t: 4, p: 5 };

/** A size or offset as people type it: `4096`, `0x1000`, `64K`, `1.5 GiB`. Null if it is none. */
export function parseSize(text: string): number | null {
  const clean = text.trim().toLowerCase().replace(/[\s_\u202f]/g, "");
  if (/^0x[0-9a-f]+$/.test(clean)) {
    return safe(Number(clean));
  }
  const match = /^(\d+(?:\.\d+)?)([kmgtp]?)(?:i?b)?$/.exec(clean);
  const factor = FACTORS[match?.[2] ?? "x"];
  return match === null || factor === undefined ? null : safe(Number(match[1]) * 1024 ** factor);
}

function safe(value: number): number | null {
  return Number.isSafeInteger(value) && value >= 0 ? value : null;
}

/** What was thrown, in a sentence. */
export function reason(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  const cause = error.cause instanceof Error && !error.message.includes(error.cause.message) ? ` (${error.cause.message})` : "";
  return `${error.message}${cause}`;
}

/** JSON of reports: bigints become numbers where that is exact, else text. */
export function json(value: unknown, space = 2): string {
  const plain = (_key: string, found: unknown): unknown =>
    typeof found === "bigint" ? (found < 2n ** 53n ? Number(found) : found.toString()) : found;
  return JSON.stringify(value, plain, space);
}
