// What is looked at, kept in the page's address, so that a link shows a colleague the same.

import { DRAWING } from "./parameters.js";

// The page lays tiles out itself, and reads what stands in a PNG.
const CHOSEN_BY_PAGE = ["columns", "scale", "format"];
/** The parameters of a picture that a view holds under their own names. */
export const LOOKS = Object.keys(DRAWING).filter((name) => !CHOSEN_BY_PAGE.includes(name));
/** What a view holds of each parameter of a picture. */
const USUAL = Object.fromEntries(LOOKS.map((name) => [name, DRAWING[name].default ?? (DRAWING[name].type === "string" ? "" : null)]));
const DEFAULTS = /** @type {View & Record<string, any>} */ ({
  image: "",
  model: "",
  layer: "",
  ...USUAL,
  sort: "index",
  tile: 96,
  over: false,
  lesson: "",
  pinned: "",
});
// A step that one would want to go back from.
const STEPS = new Set(["image", "model", "layer", "pinned"]);
// What makes a picture, and so what is kept beside another one.
const PICTURE = ["image", "model", "layer", ...LOOKS];

/** The view as it is; only `change` alters it. */
export const view = read(location.hash.slice(1));
/** @type {Array<[Set<string>, (changed: string[]) => void]>} */
const listeners = [];

/**
 * Call `listener` whenever one of the keys changes.
 * @param {string[]} keys
 * @param {(changed: string[]) => void} listener
 */
export function onChange(keys, listener) {
  listeners.push([new Set(keys), listener]);
}

/**
 * Change the view, its address, and whatever shows it.
 * @param {Partial<View> & Record<string, any>} patch
 * @param {{ quiet?: boolean }} [given]
 */
export function change(patch, { quiet = false } = {}) {
  const changed = Object.keys(patch).filter((key) => view[key] !== patch[key]);
  if (!changed.length) return;
  Object.assign(view, patch);
  const step = !quiet && changed.some((key) => STEPS.has(key));
  history[step ? "pushState" : "replaceState"](null, "", `#${write(view)}`);
  tell(changed);
}

/**
 * Whether a picture of such a view depends on a parameter.
 * @param {string} name
 * @param {{ style: string, normalize: string }} view
 */
export function uses(name, { style, normalize }) {
  const styles = DRAWING[name]["x-styles"];
  if (styles && !styles.includes(style)) return false;
  if (name === "vmin" || name === "vmax") return normalize === "fixed";
  return name !== "clip" || normalize !== "fixed";
}

/** The part of the view that makes a picture, as text. */
export function pin() {
  return write(Object.fromEntries(PICTURE.map((key) => [key, view[key]])));
}

/**
 * A view that was pinned.
 * @param {string} text
 */
export function unpin(text) {
  return read(text);
}

addEventListener("popstate", () => {
  const then = read(location.hash.slice(1));
  const changed = Object.keys(DEFAULTS).filter((key) => view[key] !== then[key]);
  Object.assign(view, then);
  tell(changed);
});

/** @param {string[]} changed */
function tell(changed) {
  for (const [keys, listener] of listeners) if (changed.some((key) => keys.has(key))) listener(changed);
}

/** @param {string} text */
function read(text) {
  const given = new URLSearchParams(text);
  const found = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) if (given.has(key)) found[key] = parse(key, given.get(key));
  return found;
}

/**
 * @param {string} key
 * @param {string} text
 */
function parse(key, text) {
  if (typeof DEFAULTS[key] === "boolean") return text === "true";
  if (typeof DEFAULTS[key] === "string") return text;
  const number = Number(text);
  return text !== "" && Number.isFinite(number) ? number : DEFAULTS[key];
}

/** @param {Record<string, any>} some */
function write(some) {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(some)) {
    if (value !== DEFAULTS[key] && value !== null && value !== undefined) words.set(key, value);
  }
  return words.toString();
}
