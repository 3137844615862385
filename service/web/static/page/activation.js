// Lesson: what the activation cuts away, before and after at one scale.

import { makeFigure, makeRow, makeSignedMap, reachOf, say } from "./figures.js";
import { channelValues } from "./maps.js";
import { percent } from "./words.js";

const OPERATORS = new Set(["Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Gelu", "Mish", "Softplus", "Tanh", "Sigmoid"]);

/**
 * The chosen channel before and after the nearest activation.
 * @param {LessonContext} context
 */
export async function activation({ network, layer, channel, image }) {
  const after = nearest(network, layer);
  const before = after && network.byName.get(after.reads[0]);
  if (!before?.layout || before.layout === "NC") return say("There is no activation on maps near this layer.");
  const own = channel < after.channels ? channel : 0;
  const [then, now] = await Promise.all([before, after].map((each) => channelValues(image, network, each, own)));
  const reach = reachOf(then, now);
  const about = { network, layer: before, channel: own };
  // The same number from two runs can differ in its last bits.
  const changed = then.values.reduce((number, x, at) => number + Number(Math.abs(x - now.values[at]) > reach * 1e-5), 0);
  const zeros = now.values.reduce((number, x) => number + Number(x === 0), 0);
  const gone = { ...then, values: then.values.map((x, at) => x - now.values[at]) };
  return [
    say("A convolution answers both ways: how much a place is like its filter, and how much it is the opposite. The activation lets the first pass and cuts the second away; without it all layers together could do no more than a single one."),
    makeRow(
      makeFigure(await makeSignedMap(then, reach, `Before: ${before.name}`, about), "Before", "red above zero, blue below"),
      makeFigure(await makeSignedMap(now, reach, `After: ${after.name}`, about), "After", after.op),
      makeFigure(await makeSignedMap(gone, reach, "What is gone", about), "What is gone", `${percent(changed / then.values.length)} of the cells changed`),
    ),
    say(`All three have one scale. Of channel ${own}, ${percent(zeros / now.values.length)} is zero now: those cells need nothing to be remembered, and say "not here".`),
    after === layer ? null : say(`Shown is ${after.name}, the activation nearest to this layer.`),
  ];
}

/**
 * The layer itself, whoever reads it, or the next activation below.
 * @param {Network} network
 * @param {Layer} layer
 */
function nearest(network, layer) {
  /** @param {Layer} layer */
  const fits = ({ op, layout, reads }) => OPERATORS.has(op) && layout && layout !== "NC" && network.byName.has(reads[0]);
  if (fits(layer)) return layer;
  const readers = network.layers.filter((each) => fits(each) && each.reads.includes(layer.name));
  const below = network.layers.slice(layer.index).find(fits);
  return readers[0] ?? below ?? [...network.layers].reverse().find(fits) ?? null;
}
