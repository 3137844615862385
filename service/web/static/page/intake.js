// How a photograph comes in: dropped, pasted, chosen, drawn, or taken by the webcam.

import { make } from "./elements.js";
import { complain, say } from "./messages.js";
import { drawSample } from "./sample.js";
import { scene, show } from "./scene.js";
import { askJson } from "./service.js";
import { bytes } from "./words.js";

const file = document.getElementById("file");
const veil = document.getElementById("veil");
const camera = document.getElementById("camera");
const video = document.getElementById("video");
const shutter = document.getElementById("shoot");
let entered = 0;

document.getElementById("choose").addEventListener("click", () => file.click());
document.getElementById("sample").addEventListener("click", () => take(drawSample()));
file.addEventListener("change", () => {
  if (file.files.length) take(file.files[0]);
  file.value = "";
});
addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files][0];
  if (pasted) take(pasted);
});
for (const kind of ["dragenter", "dragleave", "dragover", "drop"]) addEventListener(kind, drag);

/**
 * Send a photograph, which may still be under way, and look at it.
 * @param {Blob | Promise<Blob>} coming
 */
export async function take(coming) {
  try {
    show(await send(await coming));
  } catch (error) {
    complain(error);
  }
}

/** Send the sample: {id, width, height}. */
export async function sendSample() {
  return send(await drawSample());
}

/** @param {Blob} blob */
async function send(blob) {
  const most = scene.limits.max_body_bytes;
  if (most && blob.size > most) {
    throw Object.assign(new Error(`This file has ${bytes(blob.size)}; the service takes ${bytes(most)}`), { status: 413, code: "body-too-large" });
  }
  const headers = { "Content-Type": "application/octet-stream" };
  const { id, width, height } = await askJson("v1/images", { method: "POST", body: blob, headers });
  return { id, width, height };
}

/** @param {any} event */
function drag(event) {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  if (event.type === "dragenter") entered += 1;
  if (event.type === "dragleave") entered -= 1;
  if (event.type === "drop") {
    entered = 0;
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  }
  veil.hidden = entered <= 0;
}

// Browsers lend the webcam to pages from this machine or over TLS only.
if (navigator.mediaDevices?.getUserMedia) {
  const button = make("button", { type: "button", id: "webcam", on: { click: openCamera } }, "Webcam");
  document.getElementById("sample").after(button);
  camera.addEventListener("close", closeCamera);
  shutter.addEventListener("click", shoot);
}

async function openCamera() {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
    shutter.disabled = true;
    camera.showModal();
    await video.play();
    shutter.disabled = false;
  } catch (error) {
    say(error.name === "NotAllowedError" ? "The browser was told not to lend the webcam." : "There is no webcam to be had.", { kind: "problem" });
  }
}

function closeCamera() {
  for (const track of /** @type {MediaStream | null} */ (video.srcObject)?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

function shoot() {
  const canvas = make("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  take(new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92)));
  camera.close();
}
