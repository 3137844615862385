// What the page has to say: a line that goes by itself, or a refusal that stays until it is put away.

import { make } from "./elements.js";

const shown = new Map();

/**
 * Say something once; `lasts` in seconds, 0 until it is put away.
 * @param {string} text
 * @param {{ kind?: string, lasts?: any }} [given]
 */
export function say(text, { kind = "note", lasts = 6 } = {}) {
  const place = document.getElementById("messages");
  hush(text);
  const line = make(
    "div",
    { class: `message ${kind}`, role: kind === "problem" ? "alert" : "status" },
    make("span", {}, text),
    make("button", { type: "button", "aria-label": "Put this message away", on: { click: () => hush(text) } }, "×"),
  );
  place.append(line);
  shown.set(text, { line, timer: lasts ? setTimeout(() => hush(text), lasts * 1000) : 0 });
}

/**
 * Say why something was refused.
 * @param {any} error
 */
export function complain(error) {
  if (error.name === "AbortError") return;
  if (error.status === undefined) console.error(error);
  say(sentence(error), { kind: "problem", lasts: 0 });
}

/**
 * A refusal as a sentence with what one can do about it.
 * @param {any} error
 */
export function sentence(error) {
  /** @type {Record<string, string>} */
  const advice = {
    "image-too-large": " Make it smaller and try again.",
    "body-too-large": " Make it smaller and try again.",
    "unsupported-image-format": " JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF are read.",
    overloaded: " It was tried several times; try again in a while.",
    unauthenticated: " Reload the page to enter another key.",
  };
  const text = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  return `${/[.!?]$/.test(text) ? text : `${text}.`}${advice[error.code] ?? ""}`;
}

/** @param {string} text */
function hush(text) {
  const old = shown.get(text);
  if (!old) return;
  clearTimeout(old.timer);
  old.line.remove();
  shown.delete(text);
}
