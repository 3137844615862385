// One channel, large: its map or the map on the photograph, its values, its histogram, its scale.

import { pictureAddress } from "./addresses.js";
import { fill, make } from "./elements.js";
import { cellsAt, cellsOf, nearestCell } from "./geometry.js";
import { channelValues, summary } from "./maps.js";
import { sentence } from "./messages.js";
import { makeHistogram, makeLegend } from "./paint.js";
import { Photo } from "./photo.js";
import { fetchPicture } from "./pictures.js";
import { layerNow, onScene, placementNow, scene } from "./scene.js";
import { LOOKS, change, onChange, view } from "./view.js";
import { percent, value } from "./words.js";

const title = document.getElementById("channel-title");
const map = document.getElementById("channel-map");
const told = document.getElementById("channel-told");
const facts = document.getElementById("channel-facts");
const over = document.getElementById("over");
const photo = new Photo(document.getElementById("photo"), point);
/** @type {Layer | null} */
let shown = null;
/** @type {ChannelMap | null} */
let values = null;
// The cell of the map that is looked at: kept while values come, and from channel to channel of one layer.
/** @type {Point | null} */
let cursor = null;

over.addEventListener("change", () => change({ over: over.checked }));
map.addEventListener("pointermove", (event) => lookAt(cellUnder(event)));
map.addEventListener("pointerleave", () => lookAt(null));
map.addEventListener("keydown", step);
/** What `inspect` and `draw` show; anything that comes later for another token is dropped.
 * @type {object | null} */
inspect.now = null;
/** @type {object | null} */
draw.now = null;
onScene(() => {
  if (scene.photo) photo.show(scene.photo, placementNow());
  draw();
});
onChange(["layer", "over", ...LOOKS.filter((name) => name !== "style")], draw);

/**
 * Show the field of a cell on the photograph and say its value; `look` is {channel, cell} or null.
 * @param {Look | null} look
 */
export async function inspect(look) {
  const layer = layerNow();
  if (!look || !layer || !cellsOf(layer)) return lookAt(null);
  cursor = null;
  photo.field(layer, look.cell);
  const { channel, cell } = look;
  const inspected = (inspect.now = {});
  say(`channel ${channel}, ${where(cell)}`);
  try {
    const found = await channelValues(view.image, scene.network, layer, channel);
    if (inspect.now === inspected) say(`channel ${channel}, ${where(cell)}: ${value(found.values[cell[0] * found.columns + cell[1]])}`);
  } catch (error) {
    if (inspect.now === inspected) say(sentence(error));
  }
}

async function draw() {
  const layer = layerNow();
  if (!layer || !scene.photo) return;
  over.checked = view.over;
  const { channel } = view;
  values = null;
  if (layer !== shown || channel === null) cursor = null;
  shown = layer;
  lookAgain();
  if (channel === null) {
    title.textContent = "Channel";
    fill(map);
    return fill(facts);
  }
  title.textContent = `Channel ${channel}`;
  const drawn = (draw.now = {});
  try {
    const found = await channelValues(view.image, scene.network, layer, channel);
    if (draw.now !== drawn) return;
    values = found;
    await show(layer, drawn);
  } catch (error) {
    if (draw.now === drawn) fill(map, make("p", { class: "refusal" }, sentence(error)));
  }
}

/**
 * @param {Layer} layer
 * @param {object} drawn
 */
async function show(layer, drawn) {
  const [rows, columns] = [values.rows, values.columns];
  const numbers = summary(values.values);
  if (rows * columns === 1) {
    fill(map, make("p", { class: "single" }, value(values.values[0])));
    fill(facts, make("p", { class: "hint" }, "One value: this layer has no space any more."));
    return lookAgain();
  }
  const onPhoto = view.over && layer.reduction;
  const asked = onPhoto ? { ...view, style: "overlay", combine: "mean" } : { ...view, style: "channel" };
  const picture = await fetchPicture(pictureAddress(asked, scene.network, onPhoto ? { channels: view.channel } : { scale: 1 }));
  if (draw.now !== drawn) return;
  const image = make("img", { src: picture.url, class: onPhoto ? "large photographed" : "large", alt: `Map of channel ${view.channel}` });
  image.style.setProperty("aspect-ratio", onPhoto ? `${picture.width} / ${picture.height}` : `${columns} / ${rows}`);
  fill(map, make("div", { class: "framed" }, image, make("span", { class: "pointer", hidden: true })));
  const palette = picture.palette ?? (await paletteNow());
  fill(
    facts,
    make("div", { class: "scale" }, makeLegend(palette, picture.scale.vmin, picture.scale.vmax)),
    makeHistogram(values.values, numbers),
    make("p", { class: "facts" }, `${rows} × ${columns} cells · mean ${value(numbers.mean)} · ${percent(numbers.zeros)} zeros`),
  );
  lookAgain();
}

/** The colours in use: those of the channel's own picture. */
export async function paletteNow(channel = view.channel ?? 0) {
  const { palette } = await fetchPicture(pictureAddress({ ...view, style: "channel", channel }, scene.network, { scale: 1 }));
  return palette;
}

/**
 * A cell [y, x] of the large map, or null; its value is said as soon as it is there.
 * @param {Point | null} cell
 */
function lookAt(cell) {
  const layer = layerNow();
  inspect.now = null;
  cursor = cell;
  if (!layer || !cell) {
    photo.field(null);
    mark(null);
    return say("");
  }
  photo.field(layer, cell);
  mark([[cell[0], cell[0]], [cell[1], cell[1]]]);
  return say(values ? `${where(cell)}: ${value(values.values[cell[0] * values.columns + cell[1]])}` : where(cell));
}

/** The map has changed under what is looked at. */
function lookAgain() {
  return cursor ? lookAt(cursor) : say("");
}

/**
 * Where the photograph is pointed at: which cells look there.
 * @param {Point | null} at
 */
function point(at) {
  const layer = layerNow();
  const spans = at && layer && placementNow() && cellsAt(layer, at, placementNow());
  if (!spans) {
    mark(null);
    return say(at ? "The network sees nothing of this place." : "");
  }
  mark(spans);
  const nearest = nearestCell(layer, at, placementNow());
  photo.field(layer, nearest);
  const [rows, columns] = spans.map(([first, last]) => (first === last ? first : `${first} to ${last}`));
  const middle = values ? `; the middle one: ${value(values.values[nearest[0] * values.columns + nearest[1]])}` : "";
  const number = spans.reduce((product, [first, last]) => product * (last - first + 1), 1);
  return say(`${number} ${number === 1 ? "cell looks" : "cells look"} here: rows ${rows}, columns ${columns}${middle}`);
}

/** @param {Spans | null} spans */
function mark(spans) {
  const pointer = map.querySelector(".pointer");
  if (!pointer || !values || view.over) return pointer?.setAttribute("hidden", "");
  pointer.hidden = !spans;
  if (!spans) return undefined;
  const sides = [values.rows, values.columns];
  spans.forEach(([first, last], axis) => {
    pointer.style[axis ? "left" : "top"] = `${(first / sides[axis]) * 100}%`;
    pointer.style[axis ? "width" : "height"] = `${((last - first + 1) / sides[axis]) * 100}%`;
  });
  return undefined;
}

/** @param {PointerEvent} event */
function cellUnder(event) {
  const image = map.querySelector("img");
  if (!image || !values) return null;
  const box = image.getBoundingClientRect();
  const part = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
  if (part.some((share) => share < 0 || share >= 1)) return null;
  if (view.over) return nearestCell(layerNow(), [part[0] * scene.photo.height, part[1] * scene.photo.width], placementNow());
  return [Math.floor(part[0] * values.rows), Math.floor(part[1] * values.columns)];
}

/** @param {KeyboardEvent} event */
function step(event) {
  const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  const sides = layerNow() && cellsOf(layerNow());
  if (!by || !sides || view.channel === null) return;
  event.preventDefault();
  const from = cursor ?? sides.map((side) => Math.floor(side / 2));
  lookAt(from.map((at, axis) => Math.min(Math.max(at + by[axis], 0), sides[axis] - 1)));
}

/** @param {Point} given */
function where([y, x]) {
  return `cell (${y}, ${x})`;
}

/** @param {string} text */
function say(text) {
  told.textContent = text || "Point at the map, or focus it and use the arrow keys.";
}
