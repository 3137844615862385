// Lesson: what a convolution's filter looks for, its weights beside its map.

import { filtersAddress } from "./addresses.js";
import { make } from "./elements.js";
import { makeFigure, makePatch, makeRow, makeSignedMap, reachOf, say } from "./figures.js";
import { cellsOf, fieldBox } from "./geometry.js";
import { channelValues, summary } from "./maps.js";
import { fetchPicture } from "./pictures.js";
import { pair, value } from "./words.js";

/**
 * The filter of the chosen channel, its map, and the place where it fits best.
 * @param {LessonContext} context
 */
export async function filter({ network, layer, channel, image, placement }) {
  const convolution = convolutionOf(network, layer);
  if (!convolution) return say("No convolution stands before this layer.");
  const own = channel < convolution.channels ? channel : 0;
  const [weights, map] = await Promise.all([
    fetchPicture(filtersAddress(network, convolution.name, "png")),
    channelValues(image, network, convolution, own),
  ]);
  const about = { network, layer: convolution, channel: own };
  const { largest, high } = summary(map.values);
  const best = [Math.floor(largest / map.columns), largest % map.columns];
  const box = placement && cellsOf(convolution) && fieldBox(convolution, best, placement);
  const colored = weights.palette === null;
  return [
    say(
      "The same few weights slide over everything that lies before this layer. At each place they are multiplied with what lies there and added up: ",
      "the sum is one cell of the map. It is large where the place looks like the filter, and negative where it looks like the opposite.",
    ),
    makeRow(
      makeFigure(await tile(weights, own, convolution.channels), `Filter ${own}`, colored ? "grey is zero" : "mean over what it reads; white is zero"),
      makeFigure(await makeSignedMap(map, reachOf(map), `Map of channel ${own} of ${convolution.name}`, about), "Its map", "red above zero, blue below"),
      box ? makeFigure(await makePatch(image, box, "The place that fits best"), "Where it fits best", `${pair(convolution.receptive_field.size)} px: ${value(high)}`) : null,
    ),
    colored
      ? say("This filter reads the photograph itself, so its colours are those that it waits for.")
      : say(`This one reads ${convolution.shape ? "all channels of the layer before it" : "other channels"}, not colours: what it means depends on what they mean.`),
    convolution === layer ? null : say(`Shown is ${convolution.name}, the convolution behind this layer.`),
  ];
}

/**
 * The layer itself, or the nearest convolution among those it was made from.
 * @param {Network} network
 * @param {Layer} layer
 */
export function convolutionOf(network, layer) {
  let queue = [layer];
  const seen = new Set();
  while (queue.length) {
    const next = queue.shift();
    if (!next || seen.has(next.name)) continue;
    if (/Conv/.test(next.op) && next.layout) return next;
    seen.add(next.name);
    queue = [...queue, ...next.reads.map((name) => network.byName.get(name))];
  }
  return null;
}

/**
 * One filter cut out of the picture of all, which has about as many rows as columns and gaps of a pixel.
 * @param {Picture} picture
 * @param {number} channel
 * @param {number} filters
 */
async function tile({ url, width, height }, channel, filters) {
  const columns = Math.min(Math.ceil(Math.sqrt(filters)), filters);
  const rows = Math.ceil(filters / columns);
  const [wide, high] = [(width + 1) / columns, (height + 1) / rows];
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = make("canvas", { class: "map", role: "img", "aria-label": `Weights of filter ${channel}` });
  Object.assign(canvas, { width: wide - 1, height: high - 1 });
  const [x, y] = [(channel % columns) * wide, Math.floor(channel / columns) * high];
  canvas.getContext("2d").drawImage(image, -x, -y);
  return canvas;
}
