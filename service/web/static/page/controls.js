// How a layer is drawn: each control says what it does.

import { labelled } from "./classes.js";
import { fill, make, makeChoice, makeField } from "./elements.js";
import { complain } from "./messages.js";
import { layerNow, onScene, scene } from "./scene.js";
import { change, onChange, view } from "./view.js";

const STYLES = [
  ["grid", "Channels", "every channel as a tile"],
  ["heatmap", "Heat map", "all channels combined into one"],
  ["overlay", "On the photo", "the heat map laid where the cells look"],
  ["pca", "PCA", "the three directions in which the channels differ most, as red, green and blue"],
  ["eigencam", "EigenCAM", "the one direction that explains most, on the photograph"],
  ["cam", "Class", "where the evidence for a class lies"],
];
const COLORMAPS = ["inferno", "magma", "viridis", "cividis", "turbo", "gray", "gray_r", "colorbrewer:RdBu_r", "coolwarm", "seismic"];
const NORMALIZE = {
  layer: ["One scale", "Channels can be compared: weak ones are dark."],
  channel: ["One per channel", "Weak channels become visible; they cannot be compared any more."],
  fixed: ["From … to …", "Same colours for same values in every picture."],
};
const COMBINE = { mean: ["Mean", "How much all channels react together."], max: ["Largest", "Where any single channel reacts."], norm: ["Norm", "The length of the vector of all channels: strong reactions count more."] };
const NOT_PCA = new Set(["grid", "heatmap", "overlay", "eigencam", "cam"]);
const ON_PHOTO = new Set(["overlay", "eigencam", "cam"]);
const place = document.getElementById("controls");
const styles = document.getElementById("styles");

onScene(draw);
onChange(["style", "layer", "colormap", "normalize", "combine", "sort", "target", "clip"], draw);
// On a narrow screen the maps come first.
document.getElementById("adjust").open = innerWidth > 900;

function draw() {
  const layer = layerNow();
  if (!layer || !scene.photo) return;
  const focused = document.activeElement?.id;
  fill(styles, STYLES.map(([style, words, hint]) => makeStyle(style, words, hint, layer)));
  const grid = view.style === "grid";
  fill(
    place,
    grid ? makeSort() : null,
    grid ? makeSides() : null,
    view.style === "cam" ? makeClasses() : null,
    ["heatmap", "overlay"].includes(view.style) ? makeTable("combine", "Combine channels by", COMBINE) : null,
    ON_PHOTO.has(view.style) ? makeRange("weight", "Photograph", 0, 1, 0.05, "How much of the photograph shines through.") : null,
    NOT_PCA.has(view.style) ? makeColormap() : make("p", { class: "hint wide" }, "PCA has colours of its own: cells of one colour have channels alike."),
    NOT_PCA.has(view.style) ? makeTable("normalize", "Brightness", NORMALIZE) : null,
    view.normalize === "fixed" && NOT_PCA.has(view.style) ? makeEnds() : null,
    view.normalize !== "fixed" && NOT_PCA.has(view.style)
      ? makeRange("clip", "Saturate", 0, 5, 0.5, view.clip ? `The strongest ${view.clip} % share the last colour.` : "At 0 the strongest value alone has the last colour.")
      : null,
  );
  if (focused) document.getElementById(focused)?.focus();
}

/**
 * @param {string} style
 * @param {string} words
 * @param {string} hint
 * @param {Layer} layer
 */
function makeStyle(style, words, hint, layer) {
  const disabled = layer.layout === "NC" && style !== "grid";
  const id = `style-${style}`;
  return make(
    "span",
    { class: "style" },
    make("input", {
      type: "radio", name: "style", id, value: style, checked: view.style === style, disabled,
      on: { change: () => change({ style }) },
    }),
    make("label", { for: id, title: disabled ? "A vector has no space: only its channels can be drawn." : hint }, words),
  );
}

function makeSort() {
  const choices = [["index", "Number"], ["mean", "Mean activation"]];
  return makeChoice("sort", "Order", choices, view.sort, (sort) => change({ sort }), view.sort === "mean" ? "Those that react most to this photograph come first." : "As the network numbers them.");
}

function makeSides() {
  const choices = [["48", "Small"], ["96", "Medium"], ["160", "Large"], ["288", "Very large"]];
  return makeChoice("tile", "Size", choices, String(view.tile), (tile) => change({ tile: Number(tile) }), "A cell is a whole number of pixels: nothing is blurred.");
}

/**
 * @param {"combine" | "normalize"} key
 * @param {string} words
 * @param {Record<string, string[]>} table
 */
function makeTable(key, words, table) {
  const choices = Object.entries(table).map(([name, [label]]) => [name, label]);
  return makeChoice(key, words, choices, view[key], (chosen) => change({ [key]: chosen }), table[view[key]][1]);
}

function makeColormap() {
  const choices = [["", "as the values need"], ...COLORMAPS.map((name) => [name, name])];
  if (view.colormap && !COLORMAPS.includes(view.colormap)) choices.push([view.colormap, view.colormap]);
  const hint = view.colormap ? "Runs from the smallest to the largest value of the scale." : "Black is zero. Where values go below it, white is zero, blue is below.";
  return makeChoice("colormap", "Colours", choices, view.colormap, (colormap) => change({ colormap }), hint);
}

/**
 * @param {"weight" | "clip"} key
 * @param {string} words
 * @param {number} min
 * @param {number} max
 * @param {number} step
 * @param {string} hint
 */
function makeRange(key, words, min, max, step, hint) {
  const control = make("input", {
    type: "range", id: `choice-${key}`, min, max, step, value: view[key],
    on: { change: () => change({ [key]: Number(control.value) }) },
  });
  return makeField(control, words, hint);
}

function makeEnds() {
  return ["vmin", "vmax"].map((key) => {
    const control = make("input", {
      type: "number", step: "any", id: `choice-${key}`, value: view[key] ?? "",
      on: { change: () => change({ [key]: control.value === "" ? null : Number(control.value) }) },
    });
    return makeField(control, key === "vmin" ? "First colour at" : "Last colour at");
  });
}

function makeClasses() {
  const field = makeChoice("target", "Class", [[String(view.target ?? 0), "…"]], String(view.target ?? 0), (target) => change({ target: Number(target) }), "The classes that this network finds most likely come first.");
  list(field.querySelector("select")).catch(complain);
  return field;
}

/** @param {HTMLElement} select */
async function list(select) {
  const classes = await labelled(scene.photo.id, scene.network);
  fill(select, classes.map(({ index, name, share }) => make("option", { value: index, selected: index === (view.target ?? classes[0].index) }, `${name}${share === null ? "" : ` · ${Math.round(share * 100)} %`}`)));
  if (view.target === null) change({ target: classes[0].index });
}

