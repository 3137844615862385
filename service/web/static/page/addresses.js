// The addresses of pictures, arrays and numbers: the very ones that `curl` would use.

const WITH_COMBINE = new Set(["heatmap", "overlay"]);
const WITH_PHOTOGRAPH = new Set(["overlay", "eigencam", "cam"]);

/**
 * The address of a kept photograph.
 * @param {string} image
 */
export function photographAddress(image) {
  return `v1/images/${image}`;
}

/**
 * Layer's picture as the view wants it; `changes` are further parameters, null leaves one out.
 * @param {View} view
 * @param {Network} network
 * @param {Query} [changes]
 */
export function pictureAddress(view, network, changes = {}) {
  return address(`v1/images/${view.image}/render`, network, { layer: view.layer, ...drawing(view), ...changes });
}

/**
 * The small picture of a layer in the list.
 * @param {string} image
 * @param {Network} network
 * @param {Layer} layer
 */
export function thumbnailAddress(image, network, layer) {
  const look = layer.layout === "NC" ? { style: "grid", scale: 1 } : { style: "heatmap", scale: 1 };
  return address(`v1/images/${image}/render`, network, { layer: layer.name, ...look });
}

/**
 * A layer's array.
 * @param {string} image
 * @param {Network} network
 * @param {string} layer
 * @param {Query} [asked]
 */
export function arrayAddress(image, network, layer, asked = {}) {
  return address(`v1/images/${image}/features`, network, { layers: layer, format: "npy", ...asked });
}

/**
 * Numbers about layers.
 * @param {string} image
 * @param {Network} network
 * @param {string[]} layers
 */
export function statisticsAddress(image, network, layers) {
  return address(`v1/images/${image}/statistics`, network, { layers });
}

/**
 * The weights that made a layer.
 * @param {Network} network
 * @param {string} layer
 * @param {string} format
 */
export function filtersAddress(network, layer, format) {
  return `v1/models/${network.name}/filters?${query({ layer, format, version: network.version })}`;
}

/**
 * Parameters of a picture, without those that its style has no use for.
 * @param {View} view
 */
export function drawing(view) {
  const { style, normalize } = view;
  /** @type {Query} */
  const asked = { style };
  if (style === "channel") asked.channel = view.channel ?? 0;
  if (style === "cam") asked.target = view.target ?? 0;
  if (style !== "pca") {
    if (view.colormap) asked.colormap = view.colormap;
    if (normalize === "fixed" && view.vmin !== null && view.vmax !== null) {
      Object.assign(asked, { normalize, vmin: view.vmin, vmax: view.vmax });
    } else {
      if (normalize === "channel") asked.normalize = normalize;
      if (view.clip) asked.clip = view.clip;
    }
  }
  if (WITH_COMBINE.has(style) && view.combine !== "mean") asked.combine = view.combine;
  if (WITH_PHOTOGRAPH.has(style) && view.weight !== 0.5) asked.image_weight = view.weight;
  return asked;
}

/**
 * @param {string} path
 * @param {Network} network
 * @param {Query} asked
 */
function address(path, network, asked) {
  const { version, digest, preprocessingDigest } = network;
  return `${path}?${query({ model: network.name, ...asked, version, digest, preprocessing_digest: preprocessingDigest })}`;
}

/** @param {Query} asked */
function query(asked) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined && each !== "") words.append(name, String(each));
    }
  }
  return words.toString();
}
