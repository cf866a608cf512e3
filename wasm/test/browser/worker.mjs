// Takes the bytes of an image, answers with its info.

import init, { Image } from "/pkg/web/qcowkit.js";

self.onmessage = async ({ data }) => {
  await init();
  const image = Image.open(new Uint8Array(data));
  self.postMessage(image.info());
  image.close();
};
