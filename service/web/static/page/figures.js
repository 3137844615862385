// The figures of the lessons: maps at one scale, patches of the photograph.

import { photographAddress, pictureAddress } from "./addresses.js";
import { make } from "./elements.js";
import { paint } from "./paint.js";
import { fetchPicture } from "./pictures.js";
import { ask } from "./service.js";
import { view } from "./view.js";

const SIGNED = "colorbrewer:RdBu_r";
const bitmaps = new Map();

/**
 * A figure with its caption.
 * @param {Child} picture
 * @param {string} caption
 */
export function makeFigure(picture, caption, note = "") {
  return make("figure", { class: "small" }, picture, make("figcaption", {}, caption, note ? make("span", { class: "facts" }, note) : null));
}

/**
 * Figures in a row.
 * @param {...Child} figures
 */
export function makeRow(...figures) {
  return make("div", { class: "figures" }, figures);
}

/**
 * A paragraph.
 * @param {...string} words
 */
export function say(...words) {
  return make("p", {}, words);
}

/**
 * A map in red and blue around zero; `reach` is the value of the strongest colour.
 * @param {ChannelMap} map
 * @param {number} reach
 * @param {string} name
 * @param {ChannelOf} about
 */
export async function makeSignedMap(map, reach, name, { network, layer, channel }) {
  return paint(map, -reach, reach, await colours(network, layer, channel, SIGNED), name);
}

/**
 * A map from black upwards.
 * @param {ChannelMap} map
 * @param {number} high
 * @param {string} name
 * @param {ChannelOf} about
 */
export async function makeMap(map, high, name, { network, layer, channel }) {
  return paint(map, 0, high, await colours(network, layer, channel, "inferno"), name);
}

/**
 * A part {x, y, width, height} of the photograph as a canvas, enlarged without blur where it is tiny.
 * @param {string} image
 * @param {Box} box
 * @param {string} name
 */
export async function makePatch(image, box, name) {
  const bitmap = await bitmapOf(image);
  const canvas = make("canvas", { class: "map patch", role: "img", "aria-label": name });
  Object.assign(canvas, { width: Math.max(Math.round(box.width), 1), height: Math.max(Math.round(box.height), 1) });
  canvas.getContext("2d").drawImage(bitmap, box.x, box.y, box.width, box.height, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/**
 * The photograph's pixels; one is kept.
 * @param {string} image
 */
export function bitmapOf(image) {
  if (!bitmaps.has(image)) {
    bitmaps.clear();
    bitmaps.set(image, ask(photographAddress(image)).then((answer) => answer.blob()).then((blob) => createImageBitmap(blob)));
  }
  return bitmaps.get(image);
}

/**
 * The largest |x|, at least a little.
 * @param {...ChannelMap} maps
 */
export function reachOf(...maps) {
  return Math.max(...maps.map(({ values }) => values.reduce((most, x) => (Math.abs(x) > most ? Math.abs(x) : most), 0))) || 1;
}

/**
 * @param {Network} network
 * @param {Layer} layer
 * @param {number} channel
 * @param {string} colormap
 */
async function colours(network, layer, channel, colormap) {
  const asked = { ...view, model: network.name, layer: layer.name, style: "channel", channel, colormap };
  return (await fetchPicture(pictureAddress(asked, network, { scale: 1 }))).palette;
}
