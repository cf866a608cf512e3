import assert from "node:assert/strict";
import test from "node:test";
import { errorCodes, Image } from "qcowkit";
import { edited, FEATURES, made } from "../images.mjs";

for (const commands of FEATURES) {
  test(`info is QEMU's: ${commands.join("; ")}`, () => {
    const { bytes, said } = made(...commands);
    const image = Image.open(bytes);
    const info = image.info();
    assert.deepEqual(info, said);
    assert.equal(Object.getPrototypeOf(info), Object.prototype);
    image.close();
  });
}

test("an image closes once and refuses after", () => {
  const image = Image.open(made(...FEATURES[0]).bytes);
  assert.equal(image.closed, false);
  image.close();
  image.close();
  assert.equal(image.closed, true);
  assert.throws(() => image.info(), { name: "QcowError", code: "closed" });
});

test("a block can dispose of an image", () => {
  const image = Image.open(made(...FEATURES[0]).bytes);
  assert.equal(typeof image.free, "function");
  if (Symbol.dispose) {
    image[Symbol.dispose]();
  }
});

test("what is no image is refused", () => {
  for (const bytes of [new Uint8Array(), new Uint8Array(100), new TextEncoder().encode("not an image at all")]) {
    assert.throws(() => Image.open(bytes), (error) => {
      assert.ok(error instanceof Error);
      assert.equal(error.name, "QcowError");
      assert.ok(errorCodes().includes(error.code), error.code);
      return true;
    });
  }
  assert.throws(() => Image.open(new Uint8Array(4096)), { code: "not_qcow2" });
});

test("a broken header is told with its place", () => {
  const { bytes } = made(...FEATURES[0]);
  // l1_table_offset, which must be aligned to a cluster.
  const broken = edited(bytes, 40, [0, 0, 0, 0, 0, 0, 0x30, 0x39]);
  assert.throws(() => Image.open(broken), (error) => {
    assert.equal(error.code, "corrupt");
    assert.equal(typeof error.structure, "string");
    return true;
  });
});

test("an unknown feature is named", () => {
  const { bytes } = made(...FEATURES[0]);
  const future = edited(bytes, 72, [0, 0, 1, 0, 0, 0, 0, 0]);
  assert.throws(() => Image.open(future), (error) => {
    assert.equal(error.code, "unsupported");
    assert.match(error.message, /40/);
    return true;
  });
});

test("every header of noise gives an error or an image, never a crash", () => {
  const { bytes } = made(...FEATURES[0]);
  let state = 1;
  const random = (bound) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % bound;
  };
  for (let round = 0; round < 500; round += 1) {
    const noisy = bytes.slice();
    for (let change = 0; change < 4; change += 1) {
      noisy[4 + random(108)] = random(256);
    }
    try {
      const image = Image.open(noisy);
      image.info();
      image.close();
    } catch (error) {
      // A panic would be a WebAssembly.RuntimeError.
      assert.equal(error.name, "QcowError", String(error));
    }
  }
});
