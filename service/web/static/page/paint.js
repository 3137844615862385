// Draws values in the page with the service's own colours.

import { make, makeSvg } from "./elements.js";
import { value } from "./words.js";

const LEVELS = 255;
const BINS = 48;

/**
 * A canvas of one pixel a cell; `palette` holds 256 colours, the last one for what is no number.
 * @param {ChannelMap} map
 * @param {number} low
 * @param {number} high
 * @param {Uint8Array | null} palette
 * @param {string} name
 */
export function paint({ rows, columns, values }, low, high, palette, name) {
  const canvas = make("canvas", { class: "map", role: "img", "aria-label": name });
  Object.assign(canvas, { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  for (let at = 0; at < rows * columns; at += 1) {
    const t = Math.min(Math.max((values[at] - low) / (high - low || 1), 0), 1);
    const level = Number.isNaN(t) ? LEVELS : Math.round(t * (LEVELS - 1));
    pixels.data.set(palette.subarray(level * 3, level * 3 + 3), at * 4);
    pixels.data[at * 4 + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * The colours from the scale's start to its end, with the numbers that they stand for.
 * @param {Uint8Array} palette
 * @param {number | string} low
 * @param {number | string} high
 */
export function makeLegend(palette, low, high) {
  const canvas = make("canvas", { class: "ramp", "aria-hidden": "true" });
  Object.assign(canvas, { width: LEVELS, height: 1 });
  const pixels = new ImageData(LEVELS, 1);
  for (let level = 0; level < LEVELS; level += 1) {
    pixels.data.set([...palette.subarray(level * 3, level * 3 + 3), 255], level * 4);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const said = [low, high].map((end) => (Number.isFinite(Number(end)) ? value(Number(end)) : end));
  return make("div", { class: "legend" }, make("span", {}, said[0]), canvas, make("span", {}, said[1]));
}

/**
 * How often each value occurs, with the zeros apart where they would hide all others.
 * @param {Float32Array} values
 * @param {Summary} summary
 */
export function makeHistogram(values, { low, high, zeros }) {
  const bins = new Array(BINS).fill(0);
  const apart = zeros > 0.05;
  for (const x of values) {
    if (!Number.isFinite(x) || (apart && x === 0)) continue;
    bins[Math.min(Math.floor(((x - low) / (high - low || 1)) * BINS), BINS - 1)] += 1;
  }
  const most = Math.max(...bins, 1);
  const bars = bins.map((number, at) =>
    makeSvg("rect", { x: at, y: 40 - (number / most) * 40, width: 0.86, height: (number / most) * 40 }),
  );
  const words = `${values.length} values from ${value(low)} to ${value(high)}${apart ? `, the ${Math.round(zeros * 100)} % that are zero left out` : ""}`;
  return make(
    "figure",
    { class: "histogram" },
    makeSvg("svg", { viewBox: `0 0 ${BINS} 40`, preserveAspectRatio: "none", role: "img", "aria-label": `Histogram of ${words}` }, ...bars),
    make("figcaption", {}, make("span", {}, value(low)), make("span", {}, apart ? `${Math.round(zeros * 100)} % zeros not drawn` : ""), make("span", {}, value(high))),
  );
}

/**
 * Horizontal bars: [[name, share of the largest, words]].
 * @param {Array<[string, number, string]>} rows
 * @param {string} name
 */
export function makeBars(rows, name) {
  return make(
    "table",
    { class: "bars" },
    make("caption", { class: "unseen-text" }, name),
    ...rows.map(([label, share, words]) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, label),
        make("td", { class: "bar" }, make("span", { style: { width: `${Math.max(share * 100, 0.5)}%` } })),
        make("td", { class: "number" }, words),
      ),
    ),
  );
}
