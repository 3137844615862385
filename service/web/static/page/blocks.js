// A network as a reader would divide it: stages, and in them blocks of layers that belong together.

const LARGEST_BLOCK = 12;
const MERGES = new Set(["Add", "Sum", "Concat"]);
const ACTIVATIONS = new Set(["Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "Elu", "Gelu", "Mish"]);
const SEPARATORS = [/[./]+/, /[./_:]+/];

/**
 * [{title, layers, blocks: [{name, layers}]}] in graph order.
 * @param {Layer[]} layers
 */
export function divide(layers) {
  const parts = [];
  let rest = [];
  for (const layer of layers) {
    rest.push(layer);
    if (layer.stage !== null) {
      parts.push({ title: `Stage ${layer.stage}`, layers: rest });
      rest = [];
    }
  }
  if (rest.length) parts.push({ title: parts.length ? "Head" : "Layers", layers: rest });
  return parts.map((part) => ({ ...part, blocks: blocksOf(part.layers) }));
}

/**
 * A layer's name, behind the path of its module where the name alone says nothing (getitem_3).
 * @param {Pick<Layer, "name" | "module">} layer
 */
export function nameOf({ name, module }) {
  const word = module?.split(".").findLast((part) => !/^\d+$/.test(part));
  return !module || (word && name.includes(word)) ? name : `${module}/${name}`;
}

/**
 * A layer's name without what its whole block begins with.
 * @param {Layer} layer
 * @param {Block} block
 */
export function shortName(layer, block) {
  const name = nameOf(layer);
  const short = block.layers.length > 1 ? name.slice(block.prefix.length).replace(/^[./_:]+/, "") : name;
  return short || name;
}

/** @param {Layer[]} layers */
function blocksOf(layers) {
  const named = SEPARATORS.map((separator) => byName(layers, separator)).find((groups) => groups);
  return (named ?? byStructure(layers)).map((group) => {
    const prefix = group.length > 1 ? commonPrefix(group.map(nameOf)) : nameOf(group[0]);
    return { layers: group, prefix, name: prefix.replace(/^[./_:]+|[./_:]+$/g, "") || nameOf(group.at(-1)) };
  });
}

/**
 * Groups with the same beginning, as short a beginning as keeps them small; null where names do not tell.
 * @param {Layer[]} layers
 * @param {RegExp} separator
 */
function byName(layers, separator) {
  const names = layers.map((layer) => nameOf(layer).split(separator).filter((part) => part));
  const deepest = Math.max(...names.map((parts) => parts.length));
  for (let depth = 1; depth < deepest; depth += 1) {
    const groups = new Map();
    layers.forEach((layer, at) => {
      const parts = names[at];
      const key = parts.slice(0, Math.max(1, Math.min(depth, parts.length - 1))).join(" ");
      groups.set(key, [...(groups.get(key) ?? []), layer]);
    });
    const sizes = [...groups.values()].map((group) => group.length);
    if (Math.max(...sizes) <= LARGEST_BLOCK && layers.length / sizes.length >= 1.5) return [...groups.values()];
  }
  return layers.length <= LARGEST_BLOCK ? [layers] : null;
}

/**
 * A block ends where branches meet, or else before each convolution.
 * @param {Layer[]} layers
 */
function byStructure(layers) {
  const merges = layers.some(({ op }) => MERGES.has(op));
  /** @type {Layer[][]} */
  const groups = [[]];
  layers.forEach((layer, at) => {
    const before = layers[at - 1];
    const ends = merges
      ? before && !ACTIVATIONS.has(layer.op) && (MERGES.has(before.op) || (ACTIVATIONS.has(before.op) && MERGES.has(layers[at - 2]?.op)))
      : layer.op === "Conv" && at > 0;
    if (ends) groups.push([]);
    groups.at(-1).push(layer);
  });
  return groups.filter((group) => group.length);
}

/**
 * The longest beginning of all names that ends with a separator.
 * @param {string[]} names
 */
function commonPrefix(names) {
  let length = 0;
  const [first] = names;
  while (length < first.length && names.every((name) => name[length] === first[length])) length += 1;
  const begun = first.slice(0, length);
  return /[./_:]$/.test(begun) ? begun : begun.replace(/[^./_:]*$/, "");
}
