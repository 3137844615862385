// Take it away: the code that gives this very array or picture, and files of it.

import { arrayAddress, pictureAddress } from "./addresses.js";
import { fill, make, makeChoice } from "./elements.js";
import { complain, say } from "./messages.js";
import { ARRAY_FORMATS } from "./parameters.js";
import { layerNow, onScene, scene } from "./scene.js";
import { ask, hasKey } from "./service.js";
import { LOOKS, onChange, view } from "./view.js";

const place = document.getElementById("takeaway-body");
const panel = document.getElementById("takeaway");
/** @type {Record<string, string>} */
const chosen = { what: "array", from: "kept", language: "curl" };
/** @type {Record<string, string>} */
const ARRAYS = { float32: "Float32Array", float64: "Float64Array", uint8: "Uint8Array", int8: "Int8Array", int32: "Int32Array", uint16: "Uint16Array", int16: "Int16Array" };

/** @type {Record<string, (url: string, layer: Layer) => string>} */
const PROGRAMS = { curl, python, typescript };

panel.addEventListener("toggle", draw);
onScene(draw);
onChange(["layer", ...LOOKS], draw);

function draw() {
  const layer = layerNow();
  if (!panel.open || !layer || !scene.photo) return;
  /** @param {keyof typeof chosen} key */
  const set = (key) => (/** @type {string} */ value) => {
    chosen[key] = value;
    draw();
    document.getElementById(`choice-${key}`)?.focus();
  };
  const code = make("pre", { tabindex: 0, "aria-label": "The code" }, make("code", { id: "code" }, write(layer)));
  fill(
    place,
    make(
      "div",
      { class: "controls" },
      makeChoice("what", "What", [["array", "The layer's array"], ["channel", `Channel ${view.channel ?? 0} of it`], ["picture", "This picture"]], chosen.what, set("what")),
      makeChoice("from", "Of", [["kept", "this photograph, kept by the service"], ["file", "any photograph in a file"]], chosen.from, set("from")),
      makeChoice("language", "With", [["curl", "curl"], ["python", "Python"], ["typescript", "TypeScript"]], chosen.language, set("language")),
    ),
    code,
    make("p", { class: "switch" }, make("button", { type: "button", id: "copy", on: { click: () => copy(code.textContent) } }, "Copy the code"), make("button", { type: "button", on: { click: () => copy(location.href) } }, "Copy a link to this view")),
    make("p", { class: "switch", id: "downloads" }, "Download ", [...ARRAY_FORMATS, "png"].map((format) => make("button", { type: "button", on: { click: () => download(layer, format) } }, `.${format}`))),
  );
}

/** @param {Layer} layer */
function write(layer) {
  const asked = addressOf(layer, chosen.what);
  const url = new URL(chosen.from === "kept" ? asked : posted(asked), document.baseURI).href;
  return PROGRAMS[chosen.language](url, layer);
}

/**
 * @param {Layer} layer
 * @param {string} what
 */
function addressOf(layer, what) {
  const { network } = scene;
  const channels = what === "channel" && layer.layout !== "NC" ? { channels: view.channel ?? 0 } : {};
  if (what !== "picture") return arrayAddress(view.image, network, layer.name, channels);
  const style = layer.layout === "NC" ? "grid" : view.style;
  return pictureAddress({ ...view, style }, network);
}

/**
 * The same question with the photograph in the body.
 * @param {string} address
 */
function posted(address) {
  const [path, text] = address.split("?");
  const query = new URLSearchParams(text);
  query.delete("model");
  query.delete("digest");
  query.delete("preprocessing_digest");
  return `v1/models/${scene.network.name}/${path.split("/").at(-1)}?${query}`;
}

/**
 * @param {string} url
 * @param {Layer} layer
 */
function curl(url, layer) {
  const body = chosen.from === "file" ? "--data-binary @photo.jpg " : "";
  const key = hasKey() ? '-H "Authorization: Bearer $FEATUREMAPS_KEY" ' : "";
  return `curl -sS --fail-with-body ${key}${body}"${url}" -o ${nameOf(layer, chosen.what === "picture" ? "png" : "npy")}`;
}

/**
 * @param {string} url
 * @param {Layer} layer
 */
function python(url, layer) {
  const picture = chosen.what === "picture";
  const file = chosen.from === "file";
  const given = [file ? ', data=Path("photo.jpg").read_bytes()' : "", hasKey() ? ', headers={"Authorization": f"Bearer {os.environ[\'FEATUREMAPS_KEY\']}"}' : ""];
  const imports = [picture ? "" : "import io", hasKey() ? "import os" : "", picture || file ? "from pathlib import Path" : "", "from urllib.request import Request, urlopen"];
  const use = picture
    ? [`Path("${nameOf(layer, "png")}").write_bytes(urlopen(request).read())`]
    : ["feature_map = np.load(io.BytesIO(urlopen(request).read()))", "print(feature_map.shape, feature_map.dtype)"];
  return [...imports, picture ? "" : "\nimport numpy as np", "", `request = Request("${url}"${given.join("")})`, ...use].filter((line, at) => line || at === 5).join("\n");
}

/**
 * @param {string} url
 * @param {Layer} layer
 */
function typescript(url, layer) {
  const file = chosen.from === "file";
  const options = [file ? 'method: "POST", body: await readFile("photo.jpg")' : "", hasKey() ? "headers: { Authorization: `Bearer ${process.env.FEATUREMAPS_KEY}` }" : ""].filter((x) => x);
  const picture = chosen.what === "picture";
  const files = [file ? "readFile" : "", picture ? "writeFile" : ""].filter((x) => x);
  return [
    ...(files.length ? [`import { ${files.join(", ")} } from "node:fs/promises";`, ""] : []),
    `const answer = await fetch("${url}"${options.length ? `, { ${options.join(", ")} }` : ""});`,
    "if (!answer.ok) throw new Error((await answer.json()).detail);",
    "const bytes = await answer.arrayBuffer();",
    ...(picture
      ? [`await writeFile("${nameOf(layer, "png")}", new Uint8Array(bytes));`]
      : [
          "// An npy file: ten bytes, a header as long as two of them say, then the values, row by row.",
          `const values = new ${ARRAYS[layer.dtype] ?? "Uint8Array"}(bytes.slice(10 + new DataView(bytes).getUint16(8, true)));`,
          `console.log("${shapeOf(layer)}", values.length);`,
        ]),
  ].join("\n");
}

/** @param {Layer} layer */
function shapeOf(layer) {
  const shape = [...(layer.shape ?? [])];
  if (chosen.what === "channel" && layer.channel_axis !== null && layer.layout !== "NC") shape[layer.channel_axis] = 1;
  return `[${shape.join(", ")}]`;
}

/**
 * @param {Layer} layer
 * @param {string} ending
 */
function nameOf(layer, ending) {
  return `${layer.name.replace(/[^A-Za-z0-9._-]+/g, "_").replace(/^[._-]+/, "") || "layer"}.${ending}`;
}

/** @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not let this page copy: select the text and copy it.", { kind: "problem" });
  }
}

/**
 * With the key where one is needed, and refusals in words: a plain link could do neither.
 * @param {Layer} layer
 * @param {string} format
 */
async function download(layer, format) {
  try {
    const asked = format === "png" ? addressOf(layer, "picture") : arrayAddress(view.image, scene.network, layer.name, { format });
    const url = URL.createObjectURL(await (await ask(asked)).blob());
    make("a", { href: url, download: nameOf(layer, format) }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    complain(error);
  }
}

