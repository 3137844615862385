// Shows pictures: by link where that is allowed, fetched with the key where one is needed.

import { ask, askBytes, hasKey } from "./service.js";
import { sentence } from "./messages.js";

/** @typedef {HTMLImageElement & { onProblem?: (sentence: string, error?: any) => void }} PictureElement */

const MOST_KEPT = 24;
/** @type {Map<string, Promise<Picture>>} */
const kept = new Map();
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      fetchInto(/** @type {PictureElement} */ (target));
    }
  },
  { rootMargin: "300px" },
);

/**
 * Show the picture of an address in an `<img>` as soon as it comes near the window.
 * @param {PictureElement} image
 * @param {string} address
 * @param {{ onProblem?: (sentence: string, error?: any) => void }} [given]
 */
export function showPicture(image, address, { onProblem = () => {} } = {}) {
  if (image.dataset.address === address) return;
  image.dataset.address = address;
  image.onProblem = onProblem;
  image.loading = "lazy";
  if (hasKey()) {
    image.removeAttribute("src");
    near.observe(image);
    return;
  }
  // An <img> does not tell why it failed; asking again does, waits where the service is busy, and asks for a key.
  image.onerror = () => image.dataset.address === address && fetchInto(image);
  image.src = address;
}

/**
 * A picture's bytes: {url, scale, palette}; the scale and the colours stand in the PNG itself.
 * @param {string} address
 */
export function fetchPicture(address) {
  if (!kept.has(address)) {
    const coming = askBytes(address).then((buffer) => ({
      url: URL.createObjectURL(new Blob([buffer], { type: "image/png" })),
      ...readPng(buffer),
    }));
    coming.catch(() => kept.delete(address));
    kept.set(address, coming);
    drop();
  }
  return kept.get(address);
}

/** @param {PictureElement} image */
async function fetchInto(image) {
  const { address } = image.dataset;
  try {
    const blob = await (await ask(address)).blob();
    if (image.dataset.address !== address) return;
    const url = URL.createObjectURL(blob);
    image.onerror = () => image.onProblem("This picture cannot be shown by your browser.");
    image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    image.src = url;
  } catch (error) {
    image.onProblem(sentence(error), error);
  }
}

function drop() {
  if (kept.size <= MOST_KEPT) return;
  const [address, coming] = kept.entries().next().value;
  kept.delete(address);
  coming.then(({ url }) => URL.revokeObjectURL(url)).catch(() => {});
}

/**
 * PLTE and the text `featuremaps` of a PNG: https://www.w3.org/TR/png-3/#11PLTE
 * @param {ArrayBuffer} buffer
 */
function readPng(buffer) {
  const view = new DataView(buffer);
  /** @type {Omit<Picture, "url">} */
  const found = { scale: {}, palette: null, width: view.getUint32(16), height: view.getUint32(20) };
  for (let at = 8; at + 8 < buffer.byteLength; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...new Uint8Array(buffer, at + 4, 4));
    const body = new Uint8Array(buffer, at + 8, Math.min(length, buffer.byteLength - at - 8));
    if (kind === "PLTE") found.palette = body.slice();
    if (kind === "tEXt") {
      const text = new TextDecoder("latin1").decode(body);
      if (text.startsWith("featuremaps\0")) found.scale = JSON.parse(text.slice(12));
    }
    if (kind === "IDAT") break;
    at += length + 12;
  }
  return found;
}
