/** Values that cross from the module: JSON text, with integers that a `number` cannot hold as objects of one key. @module */

/** The key that no report has. */
const INTEGER = "$int";

/** What a text of the module says. A `!` in front tells that there are bigints in it. */
export function value<T>(text: string): T {
  return (text.startsWith("!") ? JSON.parse(text.slice(1), revive) : JSON.parse(text)) as T;
}

function revive(_key: string, found: unknown): unknown {
  return typeof found === "object" && found !== null && INTEGER in found
    ? BigInt((found as { [INTEGER]: string })[INTEGER])
    : found;
}
