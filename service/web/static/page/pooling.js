// Lesson: what pooling keeps and what it loses.

import { make } from "./elements.js";
import { makeFigure, makeMap, makeRow, makeSignedMap, reachOf, say } from "./figures.js";
import { channelValues } from "./maps.js";
import { percent, value } from "./words.js";

/**
 * The network's own pooling where the layer is one; else this very map, pooled here by 2 × 2.
 * @param {LessonContext} context
 */
export async function pooling({ network, layer, channel, image, alive }) {
  if (!layer.layout || layer.layout === "NC") return say("A vector has nothing left to pool: choose a layer with space.");
  const own = ownPooling(network, layer);
  const source = own ? own.before : layer;
  const then = await channelValues(image, network, source, channel);
  if (then.rows * then.columns < 4) return say("This map is too small to be pooled: choose an earlier layer.");
  const about = { network, layer: source, channel };
  const place = make("div", {});
  /** @param {string} how */
  const show = async (how) => {
    const now = own ? await channelValues(image, network, layer, channel) : pool(then, how);
    const parts = await compare(then, now, about, own ? layer.op : `${how === "max" ? "largest" : "mean"} of 2 × 2`);
    if (alive()) place.replaceChildren(...parts);
  };
  await show("max");
  return [
    say(
      own ? `${layer.name} is a pooling layer of this network. ` : "This is the map that you look at, pooled here by 2 × 2. ",
      "Pooling says that something was there, and forgets exactly where: fewer cells to compute with, and the answer moves less when the photograph moves.",
    ),
    own ? null : makeSwitch(show),
    place,
  ];
}

/**
 * @param {ChannelMap} then
 * @param {ChannelMap} now
 * @param {ChannelOf} about
 * @param {string} how
 */
async function compare(then, now, about, how) {
  const wide = enlarge(now, then);
  const lost = { ...then, values: then.values.map((x, at) => x - wide.values[at]) };
  const reach = reachOf(then, now);
  const [cells, left] = [then.values.length, now.values.length];
  const difference = lost.values.reduce((sum, x) => sum + Math.abs(x), 0) / cells;
  const signed = then.values.some((x) => x < 0);
  const draw = signed ? makeSignedMap : makeMap;
  return [
    makeRow(
      makeFigure(await draw(then, reach, "Before pooling", about), "Before", `${then.rows} × ${then.columns} cells`),
      makeFigure(await draw(wide, reach, "After pooling", about), "After", `${now.rows} × ${now.columns}: ${how}`),
      makeFigure(await makeSignedMap(lost, reach, "Difference", about), "Difference", "before less after, same scale"),
    ),
    say(`${percent(left / cells)} of the numbers are left; each cell of before differs from its pooled one by ${value(difference)} on average, where the largest is ${value(reach)}.`),
  ];
}

/**
 * @param {Network} network
 * @param {Layer} layer
 */
function ownPooling(network, layer) {
  const before = network.byName.get(layer.reads[0]);
  return /Pool/.test(layer.op) && before?.layout === layer.layout && before.channels === layer.channels ? { before } : null;
}

/** @param {(how: string) => void} show */
function makeSwitch(show) {
  const buttons = [["max", "Largest of four"], ["mean", "Mean of four"]].map(([how, words]) =>
    make("button", { type: "button", "aria-pressed": String(how === "max"), on: { click: (/** @type {Event} */ event) => {
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === event.target));
      show(how);
    } } }, words),
  );
  return make("p", { class: "switch" }, buttons);
}

/**
 * @param {ChannelMap} map
 * @param {string} how
 */
function pool({ rows, columns, values }, how) {
  const small = { rows: Math.ceil(rows / 2), columns: Math.ceil(columns / 2), values: /** @type {number[]} */ ([]) };
  for (let y = 0; y < small.rows; y += 1) {
    for (let x = 0; x < small.columns; x += 1) {
      const four = [[0, 0], [0, 1], [1, 0], [1, 1]]
        .filter(([down, right]) => 2 * y + down < rows && 2 * x + right < columns)
        .map(([down, right]) => values[(2 * y + down) * columns + 2 * x + right]);
      small.values.push(how === "max" ? Math.max(...four) : four.reduce((sum, each) => sum + each, 0) / four.length);
    }
  }
  return { ...small, values: Float32Array.from(small.values) };
}

/**
 * Each pooled cell drawn as large as the cells that it stands for.
 * @param {ChannelMap} small
 * @param {ChannelMap} map
 */
function enlarge(small, { rows, columns }) {
  const values = new Float32Array(rows * columns);
  for (let at = 0; at < values.length; at += 1) {
    const y = Math.min(Math.floor((Math.floor(at / columns) * small.rows) / rows), small.rows - 1);
    const x = Math.min(Math.floor(((at % columns) * small.columns) / columns), small.columns - 1);
    values[at] = small.values[y * small.columns + x];
  }
  return { rows, columns, values };
}
