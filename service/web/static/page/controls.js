// How a layer is drawn: each control says what it does.

import { labelled } from "./classes.js";
import { fill, make, makeChoice, makeField } from "./elements.js";
import { complain } from "./messages.js";
import { DRAWING } from "./parameters.js";
import { layerNow, onScene, scene } from "./scene.js";
import { LOOKS, change, onChange, uses, view } from "./view.js";

// One channel is looked at by itself, beside all of them.
export const STYLES = DRAWING.style.enum.filter((style) => style !== "channel");
// What people are told: label, hint, and in full. Whatever is not here goes by its own name.
/** @type {Record<string, string[]>} */
const STYLE_WORDS = {
  grid: ["Channels", "every channel as a tile"],
  heatmap: ["Heat map", "all channels combined into one"],
  overlay: ["On the photo", "the heat map laid where the cells look", "Heat map on the photograph"],
  pca: ["PCA", "the three directions in which the channels differ most, as red, green and blue", "Principal components"],
  eigencam: ["EigenCAM", "the one direction that explains most, on the photograph", "First component on the photograph"],
  cam: ["Class", "where the evidence for a class lies", "Evidence for the class on the photograph"],
};
/** @type {Record<string, [string, any]>} */
const WORDS = {
  normalize: ["Brightness", { layer: "Channels can be compared: weak ones are dark.", channel: "Weak channels become visible; they cannot be compared any more.", fixed: "Same colours for same values in every picture." }],
  combine: ["Combine channels by", { mean: "How much all channels react together.", max: "Where any single channel reacts.", norm: "The length of the vector of all channels: strong reactions count more." }],
  image_weight: ["Photograph", "How much of the photograph shines through."],
  clip: ["Saturate", "So many percent, the strongest, share the last colour; at 0 the strongest value alone has it."],
  vmin: ["First colour at", ""],
  vmax: ["Last colour at", ""],
};
/** @type {Record<string, string>} */
const CHOICE_WORDS = { layer: "One scale", channel: "One per channel", fixed: "From … to …", mean: "Mean", max: "Largest", norm: "Norm" };
// A range has at least so many steps.
const STEPS = 100;
const place = document.getElementById("controls");
const styles = document.getElementById("styles");

onScene(draw);
// Numbers are typed one after the other: making the controls again would lose the next one.
onChange(["layer", "sort", "target", ...LOOKS.filter((name) => DRAWING[name].type === "string")], draw);
// On a narrow screen the maps come first.
document.getElementById("adjust").open = innerWidth > 900;

function draw() {
  const layer = layerNow();
  if (!layer || !scene.photo) return;
  const focused = document.activeElement?.id;
  fill(styles, STYLES.map((style) => makeStyle(style, layer)));
  /** @type {Record<string, (name: string) => Element>} */
  const own = { colormap: makeColormap, target: makeClasses };
  const shown = LOOKS.filter((name) => name !== "style" && name !== "channel" && uses(name, view));
  fill(
    place,
    view.style === "grid" ? [makeSort(), makeSides()] : null,
    shown.map((name) => (own[name] ?? makeControl)(name)),
    uses("colormap", view) ? null : make("p", { class: "hint wide" }, "PCA has colours of its own: cells of one colour have channels alike."),
  );
  if (focused) document.getElementById(focused)?.focus();
}

/**
 * A style in words.
 * @param {string} style
 */
export function wordsOf(style) {
  const [label, hint, name] = STYLE_WORDS[style] ?? [style, ""];
  return { label, hint, name: name ?? label };
}

/**
 * @param {string} style
 * @param {Layer} layer
 */
function makeStyle(style, layer) {
  const { label, hint } = wordsOf(style);
  const disabled = layer.layout === "NC" && style !== "grid";
  const id = `style-${style}`;
  return make(
    "span",
    { class: "style" },
    make("input", {
      type: "radio", name: "style", id, value: style, checked: view.style === style, disabled,
      on: { change: () => change({ style }) },
    }),
    make("label", { for: id, title: disabled ? "A vector has no space: only its channels can be drawn." : hint }, label),
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
 * A control as a parameter is declared: a list of its choices, a range within its bounds, or a number.
 * @param {string} name
 */
function makeControl(name) {
  const { enum: choices, minimum: min, maximum: max, default: usual, description } = DRAWING[name];
  const [words, hints] = WORDS[name] ?? [name, description];
  if (choices) {
    const hint = hints[view[name]] ?? description;
    return makeChoice(name, words, choices.map((each) => [each, CHOICE_WORDS[each] ?? each]), view[name], (chosen) => change({ [name]: chosen }), hint);
  }
  // What may be empty is typed; what has a value slides.
  const kind = usual === undefined ? { type: "number", step: "any" } : { type: "range", step: 10 ** Math.floor(Math.log10((max - min) / STEPS)) };
  const control = make("input", {
    ...kind, min, max, id: `choice-${name}`, value: view[name] ?? "",
    on: { change: () => change({ [name]: control.value === "" ? null : Number(control.value) }) },
  });
  return makeField(control, words, hints);
}

function makeColormap() {
  const choices = [["", "as the values need"], ...DRAWING.colormap.examples.map((name) => [name, name])];
  if (view.colormap && !DRAWING.colormap.examples.includes(view.colormap)) choices.push([view.colormap, view.colormap]);
  const hint = view.colormap ? "Runs from the smallest to the largest value of the scale." : "Black is zero. Where values go below it, white is zero, blue is below.";
  return makeChoice("colormap", "Colours", choices, view.colormap, (colormap) => change({ colormap }), hint);
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

