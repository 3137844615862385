// The network and the photograph that are looked at: what the view's names stand for.

import { place } from "./geometry.js";
import { complain, say } from "./messages.js";
import { ask, askJson } from "./service.js";
import { photographAddress } from "./addresses.js";
import { change, onChange, view } from "./view.js";

/** As loaded; null until it is. `networks` is the list of all models. */
/** @type {Scene} */
export const scene = { networks: [], network: null, photo: null, limits: {} };
/** @type {Array<() => void>} */
const listeners = [];
/** @type {Map<string, Promise<Network>>} */
const known = new Map();
/** @type {Map<string, KeptImage | Promise<KeptImage>>} */
const photos = new Map();
// How far down the last layer lay, 0 to 1: in another network one of the same depth is looked at.
/** @type {number | null} */
let depth = null;

/**
 * Call `listener` whenever network or photograph have changed and are there.
 * @param {() => void} listener
 */
export function onScene(listener) {
  listeners.push(listener);
}

/** The layer that is looked at. */
export function layerNow() {
  return scene.network?.byName.get(view.layer) ?? null;
}

/** Where the photograph lies in the input of the network. */
export function placementNow() {
  return placementOf(scene.network, scene.photo);
}

/**
 * The same for any network and photograph.
 * @param {Network | null} network
 * @param {KeptImage | null} photo
 */
export function placementOf(network, photo) {
  return network?.preprocessing && photo?.width ? place(photo, network.preprocessing) : null;
}

/**
 * Remember a photograph's size, and look at it.
 * @param {KeptImage} photo
 */
export function show(photo) {
  photos.set(photo.id, photo);
  change({ image: photo.id });
}

/**
 * A model with its layers; asked for once.
 * @param {string} name
 */
export function findNetwork(name) {
  if (!known.has(name)) {
    const coming = load(name);
    coming.catch(() => known.delete(name));
    known.set(name, coming);
  }
  return known.get(name);
}

/**
 * The size of a kept photograph: from when it was sent, else as the browser reads it.
 * @param {string} id
 */
export async function findPhoto(id) {
  if (!photos.has(id)) photos.set(id, measure(id));
  return photos.get(id);
}

/**
 * Begin: the models, the photograph of the address or else the sample.
 * @param {() => Promise<KeptImage>} makeSample
 */
export async function open(makeSample) {
  const [{ models }, { settings }] = /** @type {[ModelList, VersionAnswer]} */ (
    await Promise.all([askJson("v1/models"), askJson("v1/version")])
  );
  Object.assign(scene, { networks: models, limits: settings });
  const usable = models.filter(({ state }) => state !== "failed");
  if (!usable.length) throw new Error("There is no model here that loads: start the service with --models PATH.");
  const model = usable.some(({ name }) => name === view.model) ? view.model : usable[0].name;
  const [photo] = await Promise.all([firstPhoto(makeSample), findNetwork(model)]);
  photos.set(photo.id, photo);
  change({ model, image: photo.id }, { quiet: true });
  await settle();
}

/**
 * The photograph of the address, where it names one that is still kept.
 * @param {() => Promise<KeptImage>} makeSample
 */
async function firstPhoto(makeSample) {
  const named = /^[0-9a-f]{64}$/.test(view.image) ? await findPhoto(view.image).catch(/** @returns {null} */ () => null) : null;
  return named ?? makeSample();
}

/** @type {object | null} The latest turn; what an earlier one loads is dropped. */
settle.turn = null;

async function settle() {
  const turn = (settle.turn = {});
  try {
    const [network, photo] = await Promise.all([findNetwork(view.model), findPhoto(view.image)]);
    if (settle.turn !== turn) return;
    if (network.noImageReason) say(`${network.name} takes no photographs: ${network.noImageReason}`, { kind: "problem", lasts: 0 });
    Object.assign(scene, { network, photo });
    const layer = likeness(network, view.layer);
    if (layer !== view.layer) change({ layer, channel: null }, { quiet: true });
    depth = depthOf(network, layer);
    for (const listener of listeners) listener();
  } catch (error) {
    complain(error);
  }
}

/**
 * @param {string} name
 * @returns {Promise<Network>}
 */
async function load(name) {
  const path = `v1/models/${encodeURIComponent(name)}`;
  const [told, listed] = /** @type {[ModelDescription, LayerList]} */ (
    await Promise.all([askJson(path), askJson(`${path}/layers`)])
  );
  return {
    name,
    version: listed.version,
    digest: listed.digest,
    preprocessingDigest: told.preprocessing_digest,
    layers: listed.layers,
    byName: new Map(listed.layers.map((layer) => [layer.name, layer])),
    totalMacs: listed.total_macs,
    stages: told.stages,
    outputs: told.outputs,
    labels: told.labels,
    inputs: told.inputs,
    preprocessing: told.preprocessing,
    noImageReason: told.no_image_reason,
  };
}

/**
 * The layer of the same name, else at the same depth, else the first stage.
 * @param {Network} network
 * @param {string} name
 */
function likeness(network, name) {
  if (network.byName.has(name)) return name;
  const stages = network.stages.filter((stage) => network.byName.has(stage));
  if (!stages.length) return network.layers[0]?.name ?? "";
  if (depth === null) return stages[0];
  /** @param {string} stage */
  const far = (stage) => Math.abs(depthOf(network, stage) - depth);
  return stages.reduce((best, stage) => (far(stage) < far(best) ? stage : best));
}

/**
 * @param {Network} network
 * @param {string} name
 */
function depthOf(network, name) {
  return network.byName.get(name).index / network.layers.length;
}

/** @param {string} id */
async function measure(id) {
  try {
    const bitmap = await createImageBitmap(await (await ask(photographAddress(id))).blob());
    const photo = { id, width: bitmap.width, height: bitmap.height };
    bitmap.close();
    return photo;
  } catch (error) {
    photos.delete(id);
    if (error.code === "image-not-found") {
      say("The photograph of this address is not kept any more: here is the sample instead.", { lasts: 0 });
    } else if (error.status) complain(error);
    // The maps do not need its size; only the boxes on it do.
    else return { id, width: 0, height: 0 };
    throw error;
  }
}

onChange(["model", "image"], settle);
onChange(["layer"], () => {
  if (layerNow()) depth = depthOf(scene.network, view.layer);
});
