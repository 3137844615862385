// Lesson: the maps move with the photograph, the pooled vector hardly does.

import { make } from "./elements.js";
import { bitmapOf, makeFigure, makeMap, reachOf, say } from "./figures.js";
import { cellsOf } from "./geometry.js";
import { sentence } from "./messages.js";
import { readNpy } from "./npy.js";
import { askBytes } from "./service.js";

/** @typedef {{ map: ChannelMap, vector: Float32Array }} Answer */
/** @typedef {{ bitmap: ImageBitmap, network: Network, mapped: Layer, last: Layer, channel: number }} Still */
/** @typedef {{ at: Point, first: Answer | null, busy: boolean, again: boolean }} State */

const MARGIN = 0.15;
const SIDE = 320;

/**
 * A window on the photograph that can be dragged, with what the network makes of it.
 * @param {LessonContext} context
 */
export async function shift({ network, layer, channel, image, alive }) {
  const mapped = cellsOf(layer) && layer.reduction ? layer : network.byName.get(network.stages[0]);
  const last = network.byName.get(network.stages.at(-1));
  if (!mapped || !last || !cellsOf(last)) return say("This network has no stages with space to move in.");
  const own = channel < mapped.channels ? channel : 0;
  const still = { bitmap: await bitmapOf(image), network, mapped, last, channel: own };
  const canvas = makeWindow(network);
  /** @type {State} */
  const state = { at: [0, 0], first: null, busy: false, again: false };
  const place = make("div", { class: "figures" });
  const words = make("p", { role: "status" });
  const show = async () => {
    drawWindow(canvas, still.bitmap, state.at);
    if (state.busy) return (state.again = true);
    state.busy = true;
    try {
      do {
        state.again = false;
        const found = await look(canvas, still);
        state.first ??= found;
        if (alive()) await tell(found, state.first, still, place, words);
      } while (state.again && alive());
    } catch (error) {
      words.textContent = sentence(error);
    }
    state.busy = false;
    return undefined;
  };
  listen(canvas, state, show);
  await show();
  return [
    say("Drag the photograph, or focus it and use the arrow keys."),
    make("div", { class: "figures" }, makeFigure(canvas, "What the network is shown"), place),
    words,
  ];
}

/** @param {Network} network */
function makeWindow(network) {
  const [rows, columns] = network.preprocessing.size;
  const scale = SIDE / Math.max(rows, columns);
  const canvas = make("canvas", { class: "window", tabindex: 0, role: "application", "aria-label": "The photograph: arrow keys move it" });
  return Object.assign(canvas, { width: Math.round(columns * scale), height: Math.round(rows * scale) });
}

/**
 * The window moves on the photograph, so that nothing is made up at its edges; `at` is -1 to 1 each way.
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} bitmap
 * @param {Point} at
 */
function drawWindow(canvas, bitmap, [y, x]) {
  const ratio = canvas.width / canvas.height;
  const height = Math.min(bitmap.height, bitmap.width / ratio) * (1 - 2 * MARGIN);
  const width = height * ratio;
  const left = (bitmap.width - width) / 2 - x * MARGIN * width;
  const top = (bitmap.height - height) / 2 - y * MARGIN * height;
  canvas.getContext("2d").drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Still} still
 */
async function look(canvas, { network, mapped, last, channel }) {
  const body = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  /**
   * @param {Layer} layer
   * @param {Query} asked
   */
  const ask = (layer, asked) => {
    const query = new URLSearchParams({ layers: layer.name, format: "npy", ...asked, version: network.version });
    const headers = { "Content-Type": "application/octet-stream" };
    return askBytes(`v1/models/${network.name}/features?${query}`, { method: "POST", body, headers }).then(readNpy);
  };
  const [map, vector] = await Promise.all([ask(mapped, { channels: channel }), ask(last, { pool: "avg" })]);
  const [rows, columns] = cellsOf(mapped);
  return { map: { rows, columns, values: map.values }, vector: vector.values };
}

/**
 * @param {Answer} now
 * @param {Answer} first
 * @param {Still} still
 * @param {HTMLElement} place
 * @param {HTMLElement} words
 */
async function tell(now, first, { network, mapped, last, channel }, place, words) {
  const about = { network, layer: mapped, channel };
  const strip = { rows: 2, columns: now.vector.length, values: Float32Array.from([...first.vector, ...now.vector]) };
  const bars = await makeMap(strip, reachOf(strip), "Pooled vector, at first and now", about);
  bars.classList.add("strip");
  place.replaceChildren(
    makeFigure(await makeMap(now.map, reachOf(first.map, now.map), `Channel ${channel} of ${mapped.name}`, about), `Channel ${channel} of ${mapped.name}`),
    makeFigure(bars, `Pooled vector of ${last.name}`, "above at first, below now"),
  );
  const [maps, vectors] = [likeness(first.map.values, now.map.values), likeness(first.vector, now.vector)];
  words.textContent = `Like at first, 1 being the same: the map cell by cell ${maps.toFixed(2)}, the pooled vector ${vectors.toFixed(2)}. ` +
    "The map says where, so it moves along; the mean over all places says what, and that is still there.";
}

/**
 * The cosine of the angle between two lists of numbers.
 * @param {Float32Array} a
 * @param {Float32Array} b
 */
function likeness(a, b) {
  let [product, left, right] = [0, 0, 0];
  a.forEach((x, at) => {
    product += x * b[at];
    left += x * x;
    right += b[at] * b[at];
  });
  return left && right ? product / Math.sqrt(left * right) : left === right ? 1 : 0;
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {State} state
 * @param {() => void} show
 */
function listen(canvas, state, show) {
  /** @type {{ y: number, x: number, at: Point } | null} */
  let from = null;
  /**
   * @param {number} y
   * @param {number} x
   */
  const move = (y, x) => {
    state.at = [y, x].map((side) => Math.min(Math.max(side, -1), 1));
    show();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = { y: event.clientY, x: event.clientX, at: state.at };
  });
  canvas.addEventListener("pointerup", () => (from = null));
  canvas.addEventListener("pointermove", (event) => {
    if (!from) return;
    const box = canvas.getBoundingClientRect();
    move(from.at[0] + (event.clientY - from.y) / (MARGIN * box.height), from.at[1] + (event.clientX - from.x) / (MARGIN * box.width));
  });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowUp: [-0.2, 0], ArrowDown: [0.2, 0], ArrowLeft: [0, -0.2], ArrowRight: [0, 0.2] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(state.at[0] + by[0], state.at[1] + by[1]);
  });
}
