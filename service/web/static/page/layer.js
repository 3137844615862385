// The layer that is looked at: its channels as tiles, or one picture of all of them.

import { pictureAddress } from "./addresses.js";
import { labelled } from "./classes.js";
import { wordsOf } from "./controls.js";
import { fill, make } from "./elements.js";
import { Grid } from "./grid.js";
import { inspect } from "./inspector.js";
import { ranked, statistics } from "./maps.js";
import { complain, sentence } from "./messages.js";
import { makeLegend } from "./paint.js";
import { fetchPicture } from "./pictures.js";
import { layerNow, onScene, scene } from "./scene.js";
import { LOOKS, change, onChange, view } from "./view.js";
import { bytes, count, field, percent, plural, shape, step, value } from "./words.js";

const title = document.getElementById("layer-title");
const facts = document.getElementById("layer-facts");
const links = document.getElementById("layer-links");
const numbers = document.getElementById("layer-numbers");
const place = document.getElementById("picture");
const tiles = document.getElementById("tiles");
const scale = document.getElementById("layer-scale");
const says = document.getElementById("says");
const grid = new Grid(tiles, { choose: (channel) => change({ channel }), look: inspect });

/** @type {object | null} What is drawn; an answer for an earlier one is dropped. */
draw.now = null;
onScene(() => {
  draw();
  speak();
});
onChange(["image", "layer", ...LOOKS.filter((name) => name !== "channel")], draw);
onChange(["sort", "tile"], arrange);
onChange(["channel"], () => grid.mark(view.channel));

async function draw() {
  const layer = layerNow();
  if (!layer || !scene.photo || scene.network.name !== view.model || scene.photo.id !== view.image) return;
  const drawn = (draw.now = {});
  tell(layer);
  const style = layer.layout === "NC" ? "grid" : view.style;
  try {
    place.setAttribute("aria-busy", "true");
    await (style === "grid" ? drawTiles(layer, drawn) : drawPicture(layer, style, drawn));
  } catch (error) {
    if (draw.now === drawn) refuse(error);
  }
  if (draw.now !== drawn) return;
  place.setAttribute("aria-busy", "false");
  describe(layer, drawn).catch(complain);
}

/**
 * @param {Layer} layer
 * @param {object} drawn
 */
async function drawTiles(layer, drawn) {
  const picture = await grid.show(view, scene.network, layer);
  if (!picture || draw.now !== drawn) return;
  place.replaceChildren();
  tiles.hidden = false;
  showScale(picture);
  await arrange();
}

/**
 * @param {Layer} layer
 * @param {string} style
 * @param {object} drawn
 */
async function drawPicture(layer, style, drawn) {
  if (style === "cam" && view.target === null) return;
  const picture = await fetchPicture(pictureAddress({ ...view, style }, scene.network));
  if (draw.now !== drawn) return;
  tiles.hidden = true;
  const image = make("img", { class: "whole", src: picture.url, alt: `${wordsOf(style).name} of ${layer.name}`, width: picture.width, height: picture.height });
  fill(place, image);
  showScale(picture);
}

/** @param {Picture} picture */
function showScale({ scale: told, palette }) {
  fill(
    scale,
    palette && told.vmin !== undefined ? makeLegend(palette, told.vmin, told.vmax) : null,
    make("p", { class: "facts" }, [told.colormap, told.min !== undefined ? `values ${value(Number(told.min))} to ${value(Number(told.max))}` : told.components].filter((x) => x).join(" · ")),
  );
}

async function arrange() {
  const layer = layerNow();
  if (!grid.picture || grid.layer !== layer || tiles.hidden) return;
  const told = await statistics(view.image, scene.network, layer.name).catch(/** @returns {null} */ () => null);
  if (grid.layer !== layer) return;
  const labels = layer.layout === "NC" && layer.channels === scene.network.labels.length ? scene.network.labels : null;
  await grid.arrange({ sort: view.sort, side: view.tile, told, chosen: view.channel, labels });
}

/**
 * @param {Layer} layer
 * @param {object} drawn
 */
async function describe(layer, drawn) {
  const told = await statistics(view.image, scene.network, layer.name);
  if (draw.now !== drawn) return;
  const dead = told.dead_channels?.length ?? 0;
  const parts = [`mean ${value(told.mean)}`, `spread ${value(told.std)}`, `${percent(told.sparsity)} zeros`];
  if (dead) parts.push(`${plural(dead, "channel")} dead on this photograph`);
  if (told.non_finite) parts.push(`${plural(told.non_finite, "value")} not finite`);
  numbers.textContent = parts.join(" · ");
  // Whoever has chosen none looks at the channel that reacts most.
  if (view.channel === null && told.channel_means) change({ channel: ranked(told.channel_means)[0] }, { quiet: true });
}

/** @param {Layer} layer */
function tell(layer) {
  title.textContent = layer.name;
  const { status } = layer.receptive_field;
  const known = [layer.op, shape(layer), layer.dtype, step(layer), status === "unknown" ? null : field(layer)];
  const costs = [`${count(layer.macs)} MACs`, layer.params ? `${count(layer.params)} parameters` : null, bytes(layer.bytes_per_image)];
  facts.textContent = [...known, ...costs].filter((x) => x).join(" · ");
  numbers.textContent = "";
  const { byName } = scene.network;
  const readers = scene.network.layers.filter(({ reads }) => reads.includes(layer.name)).map(({ name }) => name);
  fill(links, makeLinks("made from ", layer.reads.filter((name) => byName.has(name))), makeLinks("read by ", readers));
}

/**
 * @param {string} words
 * @param {string[]} names
 */
function makeLinks(words, names) {
  if (!names.length) return null;
  const buttons = names.map((name) => make("button", { type: "button", class: "link", on: { click: () => change({ layer: name, channel: null }) } }, name));
  return make("span", {}, words, buttons.flatMap((button, at) => (at ? [", ", button] : [button])));
}

/** @param {any} error */
function refuse(error) {
  if (!error.told) return complain(error);
  tiles.hidden = true;
  fill(scale);
  const { byName } = scene.network;
  const instead = /** @type {string[]} */ (error.told.suggestions ?? []).filter((name) => byName.has(name));
  return fill(
    place,
    make("div", { class: "refusal" },
      make("p", {}, sentence(error)),
      instead.slice(0, 3).map((name) => make("button", { type: "button", on: { click: () => change({ layer: name, channel: null }) } }, `Look at ${name}`)),
      view.style === "grid" ? null : make("button", { type: "button", on: { click: () => change({ style: "grid" }) } }, "Show its channels"),
    ),
  );
}

/** What a classifier says: three likeliest classes beneath the photograph. */
async function speak() {
  const { network, photo } = scene;
  fill(says);
  if (!network.labels.length || !photo) return;
  try {
    const likely = (await labelled(photo.id, network)).slice(0, 3).filter(({ share }) => share !== null);
    if (scene.network !== network || scene.photo !== photo) return;
    fill(says, likely.length ? ["The network says: ", likely.map(({ name, share }) => `${name} ${percent(share)}`).join(", ")] : null);
  } catch (error) {
    complain(error);
  }
}
