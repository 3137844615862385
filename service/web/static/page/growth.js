// Lesson: how features grow from edges to patterns down the stages.

import { make } from "./elements.js";
import { makeFigure, makeMap, makePatch, reachOf, say } from "./figures.js";
import { cellsOf, fieldBox, seenBox } from "./geometry.js";
import { channelValues, ranked, statistics, summary } from "./maps.js";
import { change } from "./view.js";
import { field, percent, plural } from "./words.js";

const CHANNELS = 3;

/**
 * For each stage the channels that react most, and the patch that makes them react most.
 * @param {LessonContext} context
 */
export async function growth({ network, image, placement, alive }) {
  const stages = network.stages.map((name) => network.byName.get(name)).filter((layer) => layer?.layout && layer.layout !== "NC");
  if (!stages.length) return say("This network has no stages through which everything flows.");
  const rows = [];
  for (const layer of stages) {
    rows.push(await makeStage(layer, { network, image, placement }));
    if (!alive()) return [];
  }
  return [
    say("Each cell of a later stage sees more of the photograph and is made from all channels before it. So the first stage finds edges and colours, the next ones corners and textures, the last ones whole parts of things. Beside each map: the patch of your photograph at which its strongest cell looks."),
    make("ol", { class: "stages" }, rows),
  ];
}

/**
 * @param {Layer} layer
 * @param {{ network: Network, image: string, placement: Placement | null }} given
 */
async function makeStage(layer, { network, image, placement }) {
  const told = await statistics(image, network, layer.name);
  const strongest = ranked(told.channel_means).slice(0, CHANNELS);
  const figures = strongest.map((channel) => makeChannel(layer, channel, { network, image, placement }));
  const link = make("button", { type: "button", class: "link", on: { click: () => change({ layer: layer.name, channel: strongest[0] }) } }, layer.name);
  return make("li", {}, make("p", {}, make("strong", {}, `Stage ${layer.stage} `), link), make("p", { class: "facts" }, `${plural(layer.channels, "channel")}, each cell ${field(layer)}${share(layer, placement)}`), make("div", { class: "figures" }, await Promise.all(figures)));
}

/**
 * @param {Layer} layer
 * @param {number} channel
 * @param {{ network: Network, image: string, placement: Placement | null }} given
 */
async function makeChannel(layer, channel, { network, image, placement }) {
  const map = await channelValues(image, network, layer, channel);
  const { largest } = summary(map.values);
  const cell = [Math.floor(largest / map.columns), largest % map.columns];
  const box = placement && fieldBox(layer, cell, placement);
  const drawn = await makeMap(map, reachOf(map), `Channel ${channel} of ${layer.name}`, { network, layer, channel });
  const patch = box && box.width > 0 && box.height > 0 ? await makePatch(image, box, `The patch that channel ${channel} likes best`) : null;
  return makeFigure(make("div", { class: "couple" }, drawn, patch), `Channel ${channel}`);
}

/**
 * @param {Layer} layer
 * @param {Placement | null} placement
 */
function share(layer, placement) {
  const middle = cellsOf(layer).map((cells) => Math.floor(cells / 2));
  const box = placement && fieldBox(layer, middle, placement);
  if (!box) return "";
  const seen = seenBox(placement);
  return `, ${percent((box.width * box.height) / (seen.width * seen.height))} of the view from its middle`;
}
