// The addresses of pictures, arrays and numbers: the very ones that `curl` would use.

import { DRAWING } from "./parameters.js";
import { LOOKS, uses } from "./view.js";

/**
 * The address of a kept photograph.
 * @param {string} image
 */
export function photographAddress(image) {
  return `v1/images/${image}`;
}

/**
 * Layer's picture as the view wants it; `changes` are further parameters, null leaves one out.
 * @param {View} view
 * @param {Network} network
 * @param {Query} [changes]
 */
export function pictureAddress(view, network, changes = {}) {
  return address(`v1/images/${view.image}/render`, network, { layer: view.layer, ...drawing(view), ...changes });
}

/**
 * The small picture of a layer in the list.
 * @param {string} image
 * @param {Network} network
 * @param {Layer} layer
 */
export function thumbnailAddress(image, network, layer) {
  const look = layer.layout === "NC" ? { style: "grid", scale: 1 } : { style: "heatmap", scale: 1 };
  return address(`v1/images/${image}/render`, network, { layer: layer.name, ...look });
}

/**
 * A layer's array.
 * @param {string} image
 * @param {Network} network
 * @param {string} layer
 * @param {Query} [asked]
 */
export function arrayAddress(image, network, layer, asked = {}) {
  return address(`v1/images/${image}/features`, network, { layers: layer, format: "npy", ...asked });
}

/**
 * Numbers about layers.
 * @param {string} image
 * @param {Network} network
 * @param {string[]} layers
 */
export function statisticsAddress(image, network, layers) {
  return address(`v1/images/${image}/statistics`, network, { layers });
}

/**
 * The weights that made a layer.
 * @param {Network} network
 * @param {string} layer
 * @param {string} format
 */
export function filtersAddress(network, layer, format) {
  return `v1/models/${network.name}/filters?${query({ layer, format, version: network.version })}`;
}

/**
 * Parameters of a picture, without those that its style has no use for and those that say what holds anyway.
 * @param {View} view
 * @returns {Query}
 */
export function drawing(view) {
  const ends = view.vmin !== null && view.vmax !== null;
  /** @type {View & Record<string, any>} */
  const seen = { ...view, normalize: view.normalize === "fixed" && !ends ? DRAWING.normalize.default : view.normalize };
  const said = LOOKS.filter((name) => uses(name, seen) && seen[name] !== DRAWING[name].default);
  // These two have no default: the first is looked at until one is chosen.
  const first = ["channel", "target"].filter((name) => uses(name, seen)).map((name) => [name, 0]);
  const asked = Object.entries(seen).filter(([name, value]) => said.includes(name) && value !== null);
  return { style: view.style, ...Object.fromEntries(first), ...Object.fromEntries(asked) };
}

/**
 * @param {string} path
 * @param {Network} network
 * @param {Query} asked
 */
function address(path, network, asked) {
  const { version, digest, preprocessingDigest } = network;
  return `${path}?${query({ model: network.name, ...asked, version, digest, preprocessing_digest: preprocessingDigest })}`;
}

/** @param {Query} asked */
function query(asked) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") words.append(name, String(each));
    }
  }
  return words.toString();
}
