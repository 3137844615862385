// What is looked at, kept in the page's address, so that a link shows a colleague the same.

/** @type {View & Record<string, any>} */
const DEFAULTS = {
  image: "",
  model: "",
  layer: "",
  style: "grid",
  channel: null,
  colormap: "",
  normalize: "layer",
  vmin: null,
  vmax: null,
  clip: 0,
  combine: "mean",
  target: null,
  weight: 0.5,
  sort: "index",
  tile: 96,
  over: false,
  lesson: "",
  pinned: "",
};
// A step that one would want to go back from.
const STEPS = new Set(["image", "model", "layer", "pinned"]);
// What makes a picture, and so what is kept beside another one.
const PICTURE = ["image", "model", "layer", "style", "channel", "colormap", "normalize", "vmin", "vmax", "clip", "combine", "target", "weight"];

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
