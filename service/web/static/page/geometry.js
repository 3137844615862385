// Where a layer's cells lie on the photograph, as the service itself places them.

/**
 * How the photograph lies in the network's input: input = photograph * scale + offset, each [y, x].
 * @param {KeptImage} photo
 * @param {Preprocessing} recipe
 */
export function place(photo, recipe) {
  const size = [photo.height, photo.width];
  const { resized, corner } = fit(size, recipe);
  return { scale: resized.map((side, axis) => side / size[axis]), offset: corner, seen: recipe.size, photo: size };
}

/**
 * The photograph's part that the network sees, in its pixels.
 * @param {Placement} placement
 */
export function seenBox(placement) {
  return cut(boxOf(placement, [0, 0], placement.seen), placement);
}

/**
 * The part of the photograph that a cell depends on; null where nobody knows.
 * @param {Layer} layer
 * @param {Point} cell
 * @param {Placement} placement
 */
export function fieldBox(layer, cell, placement) {
  const { size, start, status } = layer.receptive_field;
  if (status === "whole_input") return seenBox(placement);
  if (!size || !start || !layer.reduction) return null;
  const from = start.map((first, axis) => first + cell[axis] * layer.reduction[axis]);
  const to = from.map((first, axis) => first + size[axis]);
  return cut(boxOf(placement, from, to), placement);
}

/**
 * The cells [[first, last] of rows, of columns] that look at a point [y, x] of the photograph.
 * @param {Layer} layer
 * @param {Point} point
 * @param {Placement} placement
 */
export function cellsAt(layer, point, placement) {
  const { size, start } = layer.receptive_field;
  const cells = cellsOf(layer);
  if (!size || !start || !layer.reduction || !cells) return null;
  const found = [0, 1].map((axis) => {
    const pixel = point[axis] * placement.scale[axis] + placement.offset[axis];
    if (pixel < 0 || pixel >= placement.seen[axis]) return null;
    const last = Math.floor((pixel - start[axis]) / layer.reduction[axis]);
    const first = Math.floor((pixel - start[axis] - size[axis]) / layer.reduction[axis]) + 1;
    return [Math.max(first, 0), Math.min(last, cells[axis] - 1)];
  });
  return found.some((span) => !span || span[0] > span[1]) ? null : found;
}

/**
 * The cell whose middle is nearest to a point [y, x] of the photograph.
 * @param {Layer} layer
 * @param {Point} point
 * @param {Placement} placement
 */
export function nearestCell(layer, point, placement) {
  const spans = cellsAt(layer, point, placement);
  return spans && spans.map(([first, last]) => Math.round((first + last) / 2));
}

/**
 * [rows, columns] of a layer; null for what has no space.
 * @param {Layer} layer
 */
export function cellsOf(layer) {
  if (!layer.shape) return null;
  if (layer.layout === "NCHW") return layer.shape.slice(2);
  return layer.layout === "NHWC" ? layer.shape.slice(1, 3) : null;
}

/**
 * @param {Point} photo
 * @param {Preprocessing} recipe
 */
function fit(photo, recipe) {
  const [rows, columns] = recipe.size;
  const [height, width] = photo;
  if (recipe.fit === "stretch") return { resized: [rows, columns], corner: [0, 0] };
  if (recipe.fit === "letterbox") {
    const ratio = Math.min(rows / height, columns / width);
    const resized = photo.map((side) => Math.max(1, Math.trunc(side * ratio)));
    const centred = resized.map((side, axis) => Math.floor((recipe.size[axis] - side) / 2));
    return { resized, corner: recipe.pad_at === "top-left" ? [0, 0] : centred };
  }
  const resized = recipe.resize === null ? cover(photo, recipe.size) : shortSide(photo, recipe.resize);
  return { resized, corner: resized.map((have, axis) => centre(have, recipe.size[axis])) };
}

/**
 * @param {Point} given
 * @param {number} short
 */
function shortSide([height, width], short) {
  return width <= height ? [even((short * height) / width), short] : [short, even((short * width) / height)];
}

/**
 * @param {Point} size
 * @param {Point} size
 */
function cover([height, width], [rows, columns]) {
  if (columns * height >= rows * width) return [Math.max(rows, Math.floor((height * columns) / width)), columns];
  return [rows, Math.max(columns, Math.floor((width * rows) / height))];
}

/**
 * @param {number} have
 * @param {number} want
 */
function centre(have, want) {
  return want > have ? Math.floor((want - have) / 2) : 0 - even((have - want) / 2);
}

/**
 * Halves to the even neighbour, as Python rounds.
 * @param {number} number
 */
function even(number) {
  const below = Math.floor(number);
  if (number - below !== 0.5) return Math.round(number);
  return below % 2 ? below + 1 : below;
}

/**
 * @param {Placement} placement
 * @param {Point} from
 * @param {Point} to
 */
function boxOf(placement, from, to) {
  const edges = [from, to].map((corner) => corner.map((at, axis) => (at - placement.offset[axis]) / placement.scale[axis]));
  return { y: edges[0][0], x: edges[0][1], height: edges[1][0] - edges[0][0], width: edges[1][1] - edges[0][1] };
}

/**
 * The part of a box that lies on the photograph.
 * @param {Box} box
 * @param {{ photo: Point }} placement
 */
function cut(box, { photo: [height, width] }) {
  const [top, left] = [Math.max(box.y, 0), Math.max(box.x, 0)];
  const [bottom, right] = [Math.min(box.y + box.height, height), Math.min(box.x + box.width, width)];
  return { y: top, x: left, height: Math.max(bottom - top, 0), width: Math.max(right - left, 0) };
}
