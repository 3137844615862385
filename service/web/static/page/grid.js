// A layer's channels as tiles cut from one picture: sorted, dead ones dimmed, each a choice.

import { pictureAddress } from "./addresses.js";
import { fill, make } from "./elements.js";
import { cellsOf } from "./geometry.js";
import { ranked } from "./maps.js";
import { fetchPicture } from "./pictures.js";
import { value } from "./words.js";

const BAR = [64, 1];
// So many tiles a frame, so that thousands of channels never hold up the page.
const TILES_A_FRAME = 32;

/** The tiles of one layer; `on` is called with {choose: channel, look: {channel, cell} or null}. */
export class Grid {
  /**
   * @param {HTMLElement} element
   * @param {{ choose: (channel: number) => void, look: (look: Look | null) => void }} on
   */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    /** @type {Layer | null} */
    this.layer = null;
    /** @type {number[]} */
    this.order = [];
    element.addEventListener("click", (event) => this.#choose(/** @type {HTMLElement} */ (event.target).closest(".tile")));
    element.addEventListener("keydown", (event) => this.#move(/** @type {Targeted<KeyboardEvent>} */ (event)));
    element.addEventListener("pointermove", (event) => this.#look(/** @type {Targeted<PointerEvent>} */ (event)));
    element.addEventListener("pointerleave", () => on.look(null));
  }

  /**
   * Draw a layer; `told` are its statistics, or null until they are known.
   * @param {View} view
   * @param {Network} network
   * @param {Layer} layer
   */
  async show(view, network, layer) {
    this.layer = layer;
    const count = layer.channels;
    // Where a layer has no channels the service says why it cannot be drawn, whatever the columns.
    const columns = count ? Math.ceil(Math.sqrt(count)) : null;
    /** @type {Query} */
    const asked = { columns, scale: 1 };
    const picture = await fetchPicture(pictureAddress({ ...view, style: "grid" }, network, asked));
    if (this.layer !== layer) return null;
    this.cells = layer.layout === "NC" ? BAR : cellsOf(layer);
    this.columns = columns;
    this.picture = picture;
    this.element.style.setProperty("--sprite", `url("${picture.url}")`);
    return picture;
  }

  /**
   * Lay the tiles out: `sort` is index, mean or size; `side` the wanted width of a tile in pixels.
   * @param {{ sort: string, side: number, told: Statistics | null, chosen: number | null, labels: string[] | null }} order
   */
  async arrange({ sort, side, told, chosen, labels }) {
    const { layer } = this;
    const turn = (this.turn = Symbol("turn"));
    const means = told?.channel_means ?? null;
    const dead = new Set(told?.dead_channels ?? []);
    const all = [...Array(layer.channels).keys()];
    this.order = sort === "mean" && means ? ranked(means) : all;
    fill(this.element);
    this.zoom = zoomOf(this.cells, side);
    const [high, wide] = this.cells.map((cells, axis) => cells * this.zoom[axis]);
    const style = this.element.style;
    style.setProperty("--wide", `${wide}px`);
    style.setProperty("--high", `${high}px`);
    style.setProperty("--sheet", `${this.picture.width * this.zoom[1]}px ${this.picture.height * this.zoom[0]}px`);
    this.element.classList.toggle("shrunk", this.zoom[1] < 1);
    const current = this.order.includes(chosen) ? chosen : this.order[0];
    for (let at = 0; at < this.order.length; at += TILES_A_FRAME) {
      const part = this.order.slice(at, at + TILES_A_FRAME);
      this.element.append(...part.map((channel) => this.#tile(channel, { means, dead, current, chosen, labels })));
      await new Promise(requestAnimationFrame);
      if (this.turn !== turn) return;
    }
  }

  /**
   * Show which channel is chosen.
   * @param {number | null} chosen
   */
  mark(chosen) {
    for (const tile of this.element.querySelectorAll('[aria-selected="true"], [tabindex="0"]')) {
      tile.setAttribute("aria-selected", "false");
      tile.tabIndex = -1;
    }
    const tile = this.element.querySelector(`[data-channel="${chosen}"]`) ?? /** @type {HTMLElement | null} */ (this.element.firstElementChild);
    if (!tile) return;
    if (Number(tile.dataset.channel) === chosen) tile.setAttribute("aria-selected", "true");
    tile.tabIndex = 0;
  }

  /**
   * @param {number} channel
   * @param {{ means: Array<number | null> | null, dead: Set<number>, current: number, chosen: number | null, labels: string[] | null }} looks
   */
  #tile(channel, { means, dead, current, chosen, labels }) {
    const [x, y] = [channel % this.columns, Math.floor(channel / this.columns)];
    const left = x * (this.cells[1] + 1) * this.zoom[1];
    const top = y * (this.cells[0] + 1) * this.zoom[0];
    const mean = means ? `, mean ${value(means[channel])}` : "";
    const name = labels ? `${labels[channel]} (${channel})` : `channel ${channel}`;
    return make(
      "div",
      {
        class: dead.has(channel) ? "tile dead" : "tile",
        role: "option",
        tabindex: channel === current ? 0 : -1,
        title: `${name}${mean}${dead.has(channel) ? ", dead" : ""}`,
        "aria-label": `${name}${mean}${dead.has(channel) ? ", dead: zero everywhere" : ""}`,
        "aria-selected": String(channel === chosen),
        data: { channel },
        style: { "background-position": `-${left}px -${top}px` },
      },
      make("span", { class: "number", "aria-hidden": "true" }, labels ? labels[channel] : channel),
    );
  }

  /** @param {HTMLElement | null} tile */
  #choose(tile) {
    if (tile) this.on.choose(Number(tile.dataset.channel));
  }

  /** @param {Targeted<PointerEvent>} event */
  #look(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return this.on.look(null);
    const box = tile.getBoundingClientRect();
    const at = [event.clientY - box.top - tile.clientTop, event.clientX - box.left - tile.clientLeft];
    const cell = at.map((pixel, axis) => Math.min(Math.max(Math.floor(pixel / this.zoom[axis]), 0), this.cells[axis] - 1));
    return this.on.look({ channel: Number(tile.dataset.channel), cell });
  }

  /** @param {Targeted<KeyboardEvent>} event */
  #move(event) {
    const tiles = /** @type {HTMLElement[]} */ ([...this.element.children]);
    const at = tiles.indexOf(event.target.closest(".tile"));
    if (at < 0) return;
    const across = tiles.filter((tile) => tile.offsetTop === tiles[0].offsetTop).length;
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, Home: -at, End: tiles.length - 1 - at }[event.key];
    if (by !== undefined) tiles[at + by]?.focus();
    else if (event.key === "Enter" || event.key === " ") this.#choose(tiles[at]);
    else return;
    if (by !== undefined && tiles[at + by]) {
      tiles[at].tabIndex = -1;
      tiles[at + by].tabIndex = 0;
    }
    event.preventDefault();
  }
}

/**
 * Whole pixels a cell, or a whole part of one, so that tiles stay crisp; a vector's bar is 64 high.
 * @param {Point} given
 * @param {number} side
 */
function zoomOf([rows, columns], side) {
  if (rows === BAR[0] && columns === BAR[1]) return [1, Math.max(Math.round(side / 4), 1)];
  const longest = Math.max(rows, columns);
  const zoom = longest > side ? 1 / Math.ceil(longest / side) : Math.floor(side / longest);
  return [zoom, zoom];
}
