// Short explanations on one's own photograph; each is drawn only when it is opened.

import { activation } from "./activation.js";
import { cost } from "./cost.js";
import { fill, make } from "./elements.js";
import { filter } from "./filter.js";
import { growth } from "./growth.js";
import { sentence } from "./messages.js";
import { pooling } from "./pooling.js";
import { layerNow, onScene, placementNow, scene } from "./scene.js";
import { shift } from "./shift.js";
import { change, onChange, view } from "./view.js";

/** @type {Record<string, [string, (context: LessonContext) => Child | Promise<Child>]>} */
const LESSONS = {
  filter: ["What a filter looks for", filter],
  activation: ["What the activation cuts away", activation],
  pooling: ["What pooling keeps", pooling],
  growth: ["From edges to patterns", growth],
  shift: ["Move the photograph", shift],
  cost: ["What it costs", cost],
};
// These are about the whole network, so that another layer or channel changes nothing.
const OF_NETWORK = new Set(["growth", "cost"]);
const choices = document.getElementById("lessons");
const place = document.getElementById("lesson");

/** @type {object | null} What is drawn; a lesson that was opened earlier is dropped. */
draw.now = null;
fill(
  choices,
  Object.entries(LESSONS).map(([key, [words]]) =>
    make("button", { type: "button", data: { lesson: key }, "aria-expanded": "false", "aria-controls": "lesson", on: { click: () => change({ lesson: view.lesson === key ? "" : key }) } }, words),
  ),
);
onScene(() => draw(["image"]));
onChange(["lesson", "layer", "channel"], draw);

/** @param {string[]} changed */
async function draw(changed) {
  for (const button of choices.querySelectorAll("button")) button.setAttribute("aria-expanded", String(button.dataset.lesson === view.lesson));
  place.hidden = !view.lesson;
  if (!LESSONS[view.lesson]) return fill(place);
  const layer = layerNow();
  if (!layer || !scene.photo || (OF_NETWORK.has(view.lesson) && !changed.includes("lesson") && !changed.includes("image"))) return undefined;
  const drawn = (draw.now = {});
  const [words, lesson] = LESSONS[view.lesson];
  const body = make("div", { class: "lesson-body", "aria-busy": "true" });
  fill(place, make("h3", {}, words), body);
  const about = { ...scene, layer, channel: view.channel ?? 0, image: view.image, placement: placementNow(), alive: () => draw.now === drawn };
  try {
    const parts = await lesson(about);
    if (draw.now === drawn) fill(body, parts);
    if (draw.now === drawn && changed.includes("lesson")) place.scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (draw.now === drawn) fill(body, make("p", { class: "refusal" }, sentence(error)));
    if (error.status === undefined) console.error(error);
  }
  body.setAttribute("aria-busy", "false");
  return undefined;
}
