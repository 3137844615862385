// The network as a column: stages, blocks that fold, layers with what they cost and a small picture.

import { thumbnailAddress } from "./addresses.js";
import { divide, nameOf, shortName } from "./blocks.js";
import { fill, make } from "./elements.js";
import { statistics } from "./maps.js";
import { showPicture } from "./pictures.js";
import { onScene, scene } from "./scene.js";
import { change, onChange, view } from "./view.js";
import { count, field, percent, plural, shape, step } from "./words.js";

const list = document.getElementById("layers");
const search = document.getElementById("search");
const operators = document.getElementById("operators");
const found = document.getElementById("found");
const foldAll = document.getElementById("fold-all");
const opened = new Set();
// The blocks that are shown: {id, fold}.
/** @type {Array<{ id: string, fold: (open: boolean) => void }>} */
let folds = [];
// For each layer that lies in a block, what unfolds the block.
const reveal = new Map();
// Settled once the whole column is there.
let drawing = Promise.resolve();
/** @type {{ network: Network | null, image: string }} */
let shown = { network: null, image: "" };

search.addEventListener("input", draw);
operators.addEventListener("change", draw);
foldAll.addEventListener("click", () => foldEach(folds.some(({ id }) => !opened.has(id))));
list.addEventListener("keydown", (event) => move(/** @type {Targeted<KeyboardEvent>} */ (event)));
/** @type {object | null} The blocks that are being drawn. */
drawStages.now = null;
onScene(() => {
  if (shown.network === scene.network && shown.image === scene.photo?.id) return;
  if (shown.network !== scene.network) {
    opened.clear();
    search.value = "";
    const counts = new Map();
    for (const { op } of scene.network.layers) counts.set(op, (counts.get(op) ?? 0) + 1);
    const all = make("option", { value: "" }, "every operator");
    const sorted = [...counts].sort(([a], [b]) => a.localeCompare(b));
    fill(operators, all, ...sorted.map(([op, number]) => make("option", { value: op }, `${op} (${number})`)));
  }
  shown = { network: scene.network, image: scene.photo?.id };
  draw();
});
onChange(["layer"], () => {
  reveal.get(view.layer)?.();
  mark();
  list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
});

/**
 * Look at the layer before or after this one in graph order.
 * @param {number} by
 */
export function stepLayer(by) {
  const { layers, byName } = scene.network;
  const next = layers[byName.get(view.layer).index + by];
  if (next) change({ layer: next.name, channel: null });
}

function draw() {
  const { network } = scene;
  if (!network) return;
  reveal.clear();
  folds = [];
  const words = search.value.trim().toLowerCase();
  const filtered = words || operators.value;
  foldAll.hidden = Boolean(filtered);
  if (filtered) {
    const fits = network.layers.filter(
      (layer) => (!operators.value || layer.op === operators.value) && nameOf(layer).toLowerCase().includes(words),
    );
    fill(list, make("ul", {}, fits.map((layer) => make("li", {}, makeRow(layer, nameOf(layer))))));
    found.textContent = fits.length ? plural(fits.length, "layer") : "No layer is called so.";
  } else {
    fill(list);
    drawing = drawStages(divide(network.layers));
    found.textContent = `${plural(network.layers.length, "layer")}, ${count(network.totalMacs)} MACs`;
  }
  mark();
}

/**
 * One stage a frame, so that a long network never holds up the page.
 * @param {Part[]} parts
 */
async function drawStages(parts) {
  const drawn = (drawStages.now = folds);
  for (const part of parts) {
    list.append(makeStage(part));
    await new Promise(requestAnimationFrame);
    if (drawStages.now !== drawn || folds !== drawn) return;
  }
  nameFoldAll();
}

/**
 * One block a frame, for the same reason.
 * @param {boolean} open
 */
async function foldEach(open) {
  await drawing;
  for (const { fold } of folds) {
    fold(open);
    await new Promise(requestAnimationFrame);
  }
}

function nameFoldAll() {
  foldAll.textContent = folds.every(({ id }) => opened.has(id)) ? "Fold all" : "Unfold all";
}

/** @param {Part} part */
function makeStage(part) {
  const last = part.layers.at(-1);
  const macs = part.layers.reduce((sum, { macs: own }) => sum + (own ?? 0), 0);
  return make(
    "section",
    { class: "stage", "aria-label": part.title },
    make("h3", {}, part.title, make("span", { class: "facts" }, [shape(last), step(last), `${count(macs)} MACs`].filter((x) => x).join(" · "))),
    make("ul", {}, part.blocks.map((block) => makeBlock(block))),
  );
}

/** @param {Block} block */
function makeBlock(block) {
  if (block.layers.length === 1) return make("li", {}, makeRow(block.layers[0], nameOf(block.layers[0])));
  const id = block.layers[0].name;
  const last = block.layers.at(-1);
  const inside = make("ul", { class: "inside", id: `block-${last.index}` });
  const toggle = make("button", { type: "button", class: "toggle", "aria-controls": inside.id });
  /** @param {boolean} open */
  const fold = (open) => {
    open ? opened.add(id) : opened.delete(id);
    toggle.setAttribute("aria-expanded", String(open));
    toggle.setAttribute("aria-label", `${open ? "Fold" : "Unfold"} ${block.name}, ${plural(block.layers.length, "layer")}`);
    fill(inside, open ? block.layers.map((layer) => make("li", {}, makeRow(layer, shortName(layer, block)))) : []);
    inside.hidden = !open;
    nameFoldAll();
  };
  toggle.addEventListener("click", () => fold(toggle.getAttribute("aria-expanded") !== "true"));
  // The last layer is the block's own row, which is always there.
  for (const { name } of block.layers.slice(0, -1)) reveal.set(name, () => opened.has(id) || fold(true));
  if (view.layer !== last.name && block.layers.some(({ name }) => name === view.layer)) opened.add(id);
  folds.push({ id, fold });
  fold(opened.has(id));
  const row = makeRow(last, block.name, plural(block.layers.length, "layer"));
  row.classList.add("whole");
  row.dataset.toggle = toggle.id = `toggle-${last.index}`;
  return make("li", {}, make("div", { class: "block" }, toggle, row), inside);
}

/**
 * @param {Layer} layer
 * @param {string} name
 */
function makeRow(layer, name, note = layer.op) {
  const facts = make("span", { class: "facts" }, [step(layer), field(layer), layer.macs ? `${count(layer.macs)} MACs` : null].filter((x) => x).join(" · "));
  return make(
    "button",
    { type: "button", class: "row", title: nameOf(layer), data: { layer: layer.name }, "aria-current": layer.name === view.layer ? "true" : null, on: { click: () => change({ layer: layer.name, channel: null }) } },
    makeThumbnail(layer, facts),
    make(
      "span",
      { class: "told" },
      make("span", { class: "name" }, name, " ", make("span", { class: "op" }, note)),
      make("span", { class: "facts" }, shape(layer)),
      facts,
    ),
  );
}

/**
 * @param {Layer} layer
 * @param {HTMLElement} facts
 */
function makeThumbnail(layer, facts) {
  const { network, photo } = scene;
  if (!photo || !layer.layout || layer.batch_axis === null) return make("span", { class: "thumbnail none" });
  const image = make("img", { class: "thumbnail", alt: "", decoding: "async" });
  image.addEventListener("load", () => tell(image, photo.id, network, layer, facts), { once: true });
  showPicture(image, thumbnailAddress(photo.id, network, layer), {
    onProblem: (/** @type {string} */ sentence) => {
      image.replaceWith(make("span", { class: "thumbnail none", title: sentence }));
    },
  });
  return image;
}

/**
 * How much of the layer is zero: asked for once its picture is there, so that nothing runs for it.
 * @param {HTMLImageElement} image
 * @param {string} id
 * @param {Network} network
 * @param {Layer} layer
 * @param {HTMLElement} facts
 */
async function tell(image, id, network, layer, facts) {
  try {
    const { sparsity } = await statistics(id, network, layer.name);
    if (sparsity > 0) facts.append(` · ${percent(sparsity)} zeros`);
  } catch (error) {
    image.title = error.message;
  }
}

function mark() {
  for (const row of list.querySelectorAll(".row")) {
    if (row.dataset.layer === view.layer) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
}

/**
 * Up and down go from row to row, left and right fold.
 * @param {Targeted<KeyboardEvent>} event
 */
function move(event) {
  const row = event.target.closest(".row");
  if (!row) return;
  const rows = [...list.querySelectorAll(".row")];
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (by) rows[rows.indexOf(row) + by]?.focus();
  else if (event.key === "Home") rows[0].focus();
  else if (event.key === "End") rows.at(-1).focus();
  else if (["ArrowRight", "ArrowLeft"].includes(event.key) && row.dataset.toggle) {
    const toggle = document.getElementById(row.dataset.toggle);
    if ((toggle.getAttribute("aria-expanded") === "true") !== (event.key === "ArrowRight")) toggle.click();
  } else return;
  event.preventDefault();
}
