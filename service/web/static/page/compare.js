// Two views side by side: of two layers, two photographs or two models.

import { pictureAddress } from "./addresses.js";
import { fill, make } from "./elements.js";
import { statistics } from "./maps.js";
import { sentence } from "./messages.js";
import { makeLegend } from "./paint.js";
import { fetchPicture } from "./pictures.js";
import { findNetwork, layerNow, onScene, scene } from "./scene.js";
import { LOOKS, change, onChange, pin, unpin, view } from "./view.js";
import { count, field, percent, shape, step, value } from "./words.js";

const place = document.getElementById("compare");
const button = document.getElementById("pin");

button.addEventListener("click", togglePin);
onScene(draw);
onChange(["layer", "image", "model", "pinned", ...LOOKS], draw);

/** Keep this view to compare others with it, or stop comparing. */
export function togglePin() {
  change({ pinned: view.pinned ? "" : pin() });
}

function draw() {
  button.setAttribute("aria-pressed", String(Boolean(view.pinned)));
  button.textContent = view.pinned ? "Stop comparing" : "Compare";
  place.hidden = !view.pinned;
  if (!view.pinned) return fill(place);
  if (!layerNow() || !scene.photo || scene.network.name !== view.model || scene.photo.id !== view.image) return undefined;
  const kept = unpin(view.pinned);
  const same = pin() === view.pinned;
  const swap = make("button", { type: "button", on: { click: () => swapWith(kept) } }, "Swap");
  return fill(
    place,
    make("div", { class: "heading" }, make("h3", {}, "Side by side"), swap),
    same ? make("p", { class: "hint" }, "The view on the left stays. Now choose another layer, photograph, model or style.") : null,
    make("div", { class: "pair" }, makeSide(kept, "Kept"), makeSide(view, "Now")),
  );
}

/** @param {View} kept */
function swapWith(kept) {
  const now = pin();
  change({ ...kept, pinned: now, lesson: view.lesson, sort: view.sort, tile: view.tile, over: view.over });
}

/**
 * @param {View} side
 * @param {string} name
 */
function makeSide(side, name) {
  const snapshot = { ...side };
  const figure = make("figure", { class: "side", "aria-label": name, "aria-busy": "true" }, make("figcaption", {}, `${name}: ${snapshot.model} · ${snapshot.layer}`));
  drawSide(figure, snapshot, name).catch((error) => {
    figure.setAttribute("aria-busy", "false");
    figure.append(make("p", { class: "refusal" }, sentence(error)));
  });
  return figure;
}

/**
 * @param {HTMLElement} figure
 * @param {View} side
 * @param {string} name
 */
async function drawSide(figure, side, name) {
  const network = await findNetwork(side.model);
  const layer = network.byName.get(side.layer);
  const style = layer.layout === "NC" || side.style !== "grid" || side.channel === null ? side.style : "channel";
  const looks = { ...side, style: layer.layout === "NC" ? "grid" : style };
  const picture = await fetchPicture(pictureAddress(looks, network));
  const what = style === "channel" ? `channel ${side.channel}` : style;
  const told = await statistics(side.image, network, layer.name);
  const facts = [
    ["shape", shape(layer)],
    ["cells", [step(layer), field(layer)].filter((x) => x).join(", ")],
    ["cost", `${count(layer.cumulative_macs)} MACs up to here`],
    ["mean", value(told.mean)],
    ["zeros", percent(told.sparsity)],
  ];
  figure.append(
    make("img", { class: "whole", src: picture.url, alt: `${name}: ${what} of ${layer.name} of ${network.name}` }),
    picture.palette && picture.scale.vmin !== undefined ? makeLegend(picture.palette, picture.scale.vmin, picture.scale.vmax) : "",
    make("dl", {}, make("dt", {}, "shown"), make("dd", {}, what), facts.map(([term, said]) => [make("dt", {}, term), make("dd", {}, said)])),
  );
  figure.setAttribute("aria-busy", "false");
}
