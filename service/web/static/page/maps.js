// Arrays and numbers of layers, asked for once and kept for a while.

import { arrayAddress, statisticsAddress } from "./addresses.js";
import { cellsOf } from "./geometry.js";
import { readNpy } from "./npy.js";
import { askBytes, askJson } from "./service.js";

const MOST_KEPT = 64;
const MOST_AT_ONCE = 12;
const GATHERING_MS = 120;
/**
 * @typedef {object} Question
 * @property {string} image
 * @property {Network} network
 * @property {string} name
 * @property {(told: Statistics) => void} resolve
 * @property {(error: any) => void} reject
 */

/** @type {Map<string, Promise<{ shape: number[], values: Float32Array }>>} */
const arrays = new Map();
/** @type {Map<string, Promise<Statistics>>} */
const numbers = new Map();
/** @type {Map<string, Question[]>} */
const waiting = new Map();

/**
 * One channel: {rows, columns, values}, values row-major; a vector's is one cell.
 * @param {string} image
 * @param {Network} network
 * @param {Layer} layer
 * @param {number} channel
 */
export async function channelValues(image, network, layer, channel) {
  const asked = layer.layout === "NC" || layer.channels === null ? {} : { channels: channel };
  const { values } = await array(arrayAddress(image, network, layer.name, asked));
  const [rows, columns] = cellsOf(layer) ?? [1, 1];
  if (layer.layout === "NC") return { rows: 1, columns: 1, values: values.slice(channel, channel + 1) };
  return { rows, columns, values };
}

/**
 * A whole array: {shape, values}.
 * @param {string} address
 */
export function array(address) {
  if (!arrays.has(address)) {
    const coming = askBytes(address).then(readNpy);
    coming.catch(() => arrays.delete(address));
    arrays.set(address, coming);
    if (arrays.size > MOST_KEPT) arrays.delete(arrays.keys().next().value);
  }
  return arrays.get(address);
}

/**
 * Minimum, maximum, mean, sparsity, dead channels and channels' means of one layer; several go in one question.
 * @param {string} image
 * @param {Network} network
 * @param {string} name
 */
export function statistics(image, network, name) {
  const origin = `${image} ${network.digest} ${network.preprocessingDigest}`;
  const key = `${origin} ${name}`;
  if (!numbers.has(key)) {
    const coming = new Promise((resolve, reject) => gather(origin, { image, network, name, resolve, reject }));
    coming.catch(() => numbers.delete(key));
    numbers.set(key, coming);
  }
  return numbers.get(key);
}

/**
 * @param {string} origin
 * @param {Question} question
 */
function gather(origin, question) {
  const others = waiting.get(origin) ?? [];
  if (!others.length) setTimeout(() => send(origin), GATHERING_MS);
  waiting.set(origin, [...others, question]);
}

/** @param {string} origin */
function send(origin) {
  const questions = waiting.get(origin);
  waiting.delete(origin);
  for (let at = 0; at < questions.length; at += MOST_AT_ONCE) answer(questions.slice(at, at + MOST_AT_ONCE));
}

/** @param {Question[]} questions */
async function answer(questions) {
  const { image, network } = questions[0];
  try {
    const told = await askJson(statisticsAddress(image, network, questions.map(({ name }) => name)));
    const found = new Map(/** @type {Statistics[]} */ (told.layers).map((layer) => [layer.name, layer]));
    for (const { name, resolve } of questions) resolve(found.get(name));
  } catch (error) {
    for (const { reject } of questions) reject(error);
  }
}

/**
 * The places of the largest values first.
 * @param {ArrayLike<number | null> & { keys(): Iterable<number> }} values
 */
export function ranked(values) {
  return [...values.keys()].sort((a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || a - b);
}

/**
 * Smallest, largest, mean and the share of zeros of finite values.
 * @param {Float32Array} values
 */
export function summary(values) {
  let [low, high, sum, zeros, finite] = [Infinity, -Infinity, 0, 0, 0];
  let largest = 0;
  values.forEach((x, at) => {
    if (x === 0) zeros += 1;
    if (!Number.isFinite(x)) return;
    if (x > high) largest = at;
    [low, high, sum, finite] = [Math.min(low, x), Math.max(high, x), sum + x, finite + 1];
  });
  return { low, high, mean: sum / finite, zeros: zeros / values.length, largest, finite };
}
