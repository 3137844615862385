// What a classifier says about the photograph.

import { arrayAddress } from "./addresses.js";
import { array } from "./maps.js";

/**
 * [{index, name, share}], the likeliest first; `share` is null where the output is no distribution.
 * @param {string} image
 * @param {Network} network
 * @returns {Promise<Array<{ index: number, name: string, share: number | null }>>}
 */
export async function labelled(image, network) {
  const output = network.outputs.map((name) => network.byName.get(name)).find((layer) => layer?.layout === "NC");
  const names = network.labels;
  if (!output && !names.length) return [...Array(10).keys()].map((index) => ({ index, name: `class ${index}`, share: /** @type {number | null} */ (null) }));
  if (!output) return names.map((name, index) => ({ index, name, share: /** @type {number | null} */ (null) }));
  const { values } = await array(arrayAddress(image, network, output.name));
  const shares = probabilities(values);
  const classes = shares.map((share, index) => ({ index, name: names[index] ?? `class ${index}`, share }));
  return classes.sort((a, b) => b.share - a.share || a.index - b.index);
}

/**
 * A softmax, unless the values are probabilities already.
 * @param {Float32Array} values
 */
function probabilities(values) {
  const all = [...values];
  const sum = all.reduce((total, x) => total + x, 0);
  if (Math.abs(sum - 1) < 1e-3 && all.every((x) => x >= 0)) return all;
  const largest = all.reduce((most, x) => Math.max(most, x), -Infinity);
  const powers = all.map((x) => Math.exp(x - largest));
  const total = powers.reduce((whole, x) => whole + x, 0);
  return powers.map((x) => x / total);
}
