// Reads numpy's files: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

/** @type {Record<string, any>} */
const KINDS = {
  f8: Float64Array, f4: Float32Array, i8: BigInt64Array, u8: BigUint64Array, i4: Int32Array, u4: Uint32Array,
  i2: Int16Array, u2: Uint16Array, i1: Int8Array, u1: Uint8Array, b1: Uint8Array,
};

/**
 * Bytes to {shape, values}; values are numbers, row-major.
 * @param {ArrayBuffer} buffer
 */
export function readNpy(buffer) {
  const head = new Uint8Array(buffer, 0, 12);
  if (head[0] !== 0x93 || String.fromCharCode(...head.slice(1, 6)) !== "NUMPY") throw new Error("not an npy file");
  const view = new DataView(buffer);
  const [length, start] = head[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, start, length));
  const [, order, kind] = /'descr':\s*'([<>|=])(\w\d+)'/.exec(header);
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)[1].split(",").filter((side) => side.trim()).map(Number);
  if (order === ">" || /'fortran_order':\s*True/.test(header)) throw new Error("this order of values is not read");
  return { shape, values: numbers(buffer.slice(start + length), kind) };
}

/**
 * @param {ArrayBuffer} data
 * @param {string} kind
 */
function numbers(data, kind) {
  if (kind === "f2") return Float32Array.from(new Uint16Array(data), half);
  if (!KINDS[kind]) throw new Error(`values of type ${kind} are not read`);
  const values = new KINDS[kind](data);
  return kind === "i8" || kind === "u8" ? Float64Array.from(values, Number) : values;
}

/**
 * IEEE 754 binary16.
 * @param {number} bits
 */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}
