// Begins: puts the parts together, chooses the model, and knows the keyboard.

import "./column.js";
import "./compare.js";
import "./layer.js";
import "./lessons.js";
import "./takeaway.js";
import { STYLES } from "./controls.js";
import { stepLayer } from "./column.js";
import { togglePin } from "./compare.js";
import { showHelp } from "./dialogs.js";
import { fill, make } from "./elements.js";
import { sendSample } from "./intake.js";
import { complain } from "./messages.js";
import { layerNow, onScene, open, scene } from "./scene.js";
import { change, onChange, view } from "./view.js";

// As in page.css: one part at a time.
const NARROW = 900;
const models = document.getElementById("model");
const theme = document.getElementById("theme");

models.addEventListener("change", () => change({ model: models.value, channel: null, target: null }));
theme.addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
});
for (const tab of document.querySelectorAll("[data-pane]")) tab.addEventListener("click", () => showPane(tab.dataset.pane));
document.getElementById("tiles").addEventListener("click", (event) => {
  if (innerWidth <= NARROW && /** @type {HTMLElement} */ (event.target).closest(".tile")) showPane("photo");
});
addEventListener("keydown", (event) => press(/** @type {Targeted<KeyboardEvent>} */ (event)));
onScene(() => {
  models.value = view.model;
  document.title = `${view.model} – featuremaps`;
});
onChange(["layer"], () => showPane("layer"));
start();

async function start() {
  try {
    await open(sendSample);
    fill(
      models,
      scene.networks.map(({ name, state, reason }) =>
        make("option", { value: name, disabled: state === "failed", title: reason ?? "" }, state === "failed" ? `${name} (does not load)` : name),
      ),
    );
    models.value = view.model;
  } catch (error) {
    complain(error);
  }
}

/**
 * On a narrow screen one part is shown at a time.
 * @param {string} name
 */
function showPane(name) {
  document.body.dataset.shown = name;
  for (const tab of document.querySelectorAll("[data-pane]")) tab.setAttribute("aria-pressed", String(tab.dataset.pane === name));
}

/** @param {Targeted<KeyboardEvent>} event */
function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest("input:not([type=radio]):not([type=range]):not([type=checkbox]), select, textarea, dialog")) return;
  const act = {
    "/": () => document.getElementById("search").focus(),
    "?": showHelp,
    "]": () => stepLayer(1),
    "[": () => stepLayer(-1),
    ".": () => stepChannel(1),
    ",": () => stepChannel(-1),
    o: () => change({ over: !view.over }),
    c: togglePin,
    p: () => document.getElementById("choose").click(),
    ...Object.fromEntries(STYLES.map((style, at) => [String(at + 1), () => change({ style })])),
  }[event.key];
  if (!act || !layerNow()) return;
  event.preventDefault();
  act();
}

/** @param {number} by */
function stepChannel(by) {
  const { channels } = layerNow();
  if (!channels) return;
  change({ channel: ((view.channel ?? 0) + by + channels) % channels });
}
