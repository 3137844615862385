// The photograph with what the network sees of it, the field of a cell, and where one points.

import { photographAddress } from "./addresses.js";
import { fill, make, makeSvg } from "./elements.js";
import { fieldBox, seenBox } from "./geometry.js";
import { showPicture } from "./pictures.js";

/** The photograph in an element; `onPoint` is called with [y, x] in its pixels, or null. */
export class Photo {
  /**
   * @param {HTMLElement} element
   * @param {(at: Point | null) => void} [onPoint]
   */
  constructor(element, onPoint = () => {}) {
    this.image = make("img", { alt: "The photograph", class: "photograph" });
    this.marks = makeSvg("svg", { class: "marks", "aria-hidden": "true", preserveAspectRatio: "none" });
    this.photo = null;
    fill(element, make("div", { class: "framed" }, this.image, this.marks));
    const frame = /** @type {HTMLElement} */ (element.firstElementChild);
    frame.addEventListener("pointermove", (event) => onPoint(this.#at(event)));
    frame.addEventListener("pointerleave", () => onPoint(null));
  }

  /**
   * Show a photograph and which part of it the network sees.
   * @param {KeptImage} photo
   * @param {Placement | null} placement
   */
  show(photo, placement) {
    this.photo = photo;
    this.placement = placement;
    showPicture(this.image, photographAddress(photo.id), {
      onProblem: () => (this.image.alt = "Your browser cannot show this kind of picture; the network can see it."),
    });
    if (photo.width) {
      this.image.width = photo.width;
      this.image.height = photo.height;
      this.marks.setAttribute("viewBox", `0 0 ${photo.width} ${photo.height}`);
    }
    this.field(null);
  }

  /**
   * Draw the field of a cell [y, x] of a layer, or of none.
   * @param {Layer | null} layer
   * @param {Point} [cell]
   */
  field(layer, cell) {
    this.marks.replaceChildren();
    if (!this.placement) return null;
    const seen = seenBox(this.placement);
    const { width, height } = this.photo;
    // What the crop leaves out is veiled: the even-odd rule keeps the inner box clear.
    const d = `M0 0H${width}V${height}H0ZM${seen.x} ${seen.y}h${seen.width}v${seen.height}h${-seen.width}Z`;
    this.marks.append(makeSvg("path", { class: "unseen", d, "fill-rule": "evenodd" }));
    const box = layer && fieldBox(layer, cell, this.placement);
    if (box) {
      const { x, y } = box;
      for (const kind of ["field under", "field"]) {
        this.marks.append(makeSvg("rect", { class: kind, x, y, width: box.width, height: box.height }));
      }
    }
    return box;
  }

  /** @param {PointerEvent} event */
  #at(event) {
    if (!this.photo?.width) return null;
    const box = this.image.getBoundingClientRect();
    return [((event.clientY - box.top) / box.height) * this.photo.height, ((event.clientX - box.left) / box.width) * this.photo.width];
  }
}
