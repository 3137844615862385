// Numbers and shapes in words.

const UNITS = ["", " k", " M", " G", " T"];

/**
 * 37748736 as "37.7 M".
 * @param {number | null | undefined} number
 */
export function count(number) {
  if (number === null || number === undefined) return "unknown";
  let unit = 0;
  while (Math.abs(number) >= 1000 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || Math.abs(number) >= 100 ? 0 : 1;
  return `${Number(number.toFixed(digits))}${UNITS[unit]}`;
}

/**
 * Bytes, in powers of 1000.
 * @param {number | null | undefined} number
 */
export function bytes(number) {
  return number === null || number === undefined ? "unknown" : `${count(number)}${number < 1000 ? " " : ""}B`;
}

/**
 * A value with four digits that count.
 * @param {number | null | undefined} number
 */
export function value(number) {
  if (number === null || number === undefined) return "–";
  if (!Number.isFinite(number)) return String(number);
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 1e5 || size < 1e-3 ? number.toExponential(2) : String(Number(number.toPrecision(4)));
}

/**
 * A share as "62 %".
 * @param {number | null | undefined} share
 */
export function percent(share) {
  if (share === null || share === undefined) return "–";
  const whole = Math.round(share * 100);
  return `${share > 0 && whole === 0 ? "<1" : share < 1 && whole === 100 ? ">99" : whole} %`;
}

/**
 * Channels × height × width, the batch axis left out.
 * @param {Layer} layer
 */
export function shape(layer) {
  if (!layer.shape) return "shape unknown";
  const sides = layer.batch_axis === 0 ? layer.shape.slice(1) : layer.shape;
  return sides.map((side) => side ?? "?").join(" × ") || "one value";
}

/**
 * [y, x] as one number where both are the same.
 * @param {Point | null} sides
 */
export function pair(sides) {
  if (!sides) return null;
  const [y, x] = sides.map((side) => Number(side.toFixed(2)));
  return y === x ? String(y) : `${y} × ${x}`;
}

/**
 * How much of the input a cell depends on.
 * @param {Layer} layer
 */
export function field(layer) {
  const { size, status } = layer.receptive_field;
  if (status === "whole_input") return "sees everything";
  if (!size) return "field unknown";
  return `sees ${status === "upper_bound" ? "up to " : ""}${pair(size)} px`;
}

/**
 * Input pixels from one cell to the next.
 * @param {Layer} layer
 */
export function step(layer) {
  return layer.reduction ? `÷ ${pair(layer.reduction)}` : null;
}

/**
 * "1 layer", "2 layers".
 * @param {number} number
 * @param {string} noun
 */
export function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
