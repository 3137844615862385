// Lesson: what each stage costs.

import { divide } from "./blocks.js";
import { say } from "./figures.js";
import { makeBars } from "./paint.js";
import { bytes, count, percent } from "./words.js";

/**
 * Multiply-accumulates, bytes of maps and parameters, stage by stage.
 * @param {LessonContext} context
 */
export function cost({ network }) {
  const parts = divide(network.layers);
  /** @type {Array<[string, "macs" | "bytes_per_image" | "params", (number: number) => string]>} */
  const kinds = [
    ["Work", "macs", (number) => `${count(number)} MACs`],
    ["Maps", "bytes_per_image", bytes],
    ["Parameters", "params", count],
  ];
  return [
    say("Early stages have few channels but many cells: their maps are large and their work is spread over every pixel. Late stages have few cells but many channels: that is where the parameters are."),
    ...kinds.flatMap(([words, key, told]) => {
      const sums = parts.map(({ layers }) => layers.reduce((sum, layer) => sum + (layer[key] ?? 0), 0));
      const [most, all] = [Math.max(...sums, 1), sums.reduce((sum, each) => sum + each, 0) || 1];
      /** @type {Array<[string, number, string]>} */
      const rows = parts.map(({ title }, at) => [title, sums[at] / most, `${told(sums[at])} · ${percent(sums[at] / all)}`]);
      return [say(words), makeBars(rows, words)];
    }),
    say("The service stops where the layer that you ask for is done: an early layer costs only the stages before it."),
  ];
}
