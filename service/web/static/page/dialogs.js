// Questions that the page asks in a window of its own: the key, and help with the keyboard.

import { onKeyNeeded } from "./service.js";

const dialog = document.getElementById("key");
const field = document.getElementById("key-field");
const reason = document.getElementById("key-reason");
const help = document.getElementById("help");

onKeyNeeded((detail, wasGiven) => {
  reason.textContent = wasGiven ? `That key is not accepted: ${detail}` : "This service answers only with a key. It is kept in this page's memory alone, and gone when the page is closed.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? field.value.trim() : ""), { once: true });
  });
});

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.close("use");
});
document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
document.getElementById("show-help").addEventListener("click", showHelp);
for (const each of document.querySelectorAll("dialog .close")) each.addEventListener("click", () => /** @type {HTMLDialogElement} */ (each.closest("dialog")).close());

/** Which keys do what. */
export function showHelp() {
  if (!help.open) help.showModal();
}
