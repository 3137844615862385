// Elements of the page, made from a tag, properties and children.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element; `on` holds listeners, `data` and `aria` their attributes, `class` and the rest go by their names.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  return dress(element, properties, children);
}

/**
 * The same for drawings.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 */
export function makeSvg(tag, properties = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), properties, children);
}

/**
 * Replace what an element holds.
 * @param {Element} element
 * @param {...Child} children
 */
export function fill(element, ...children) {
  element.replaceChildren(.../** @type {Array<Node | string>} */ (children.flat(3).filter((child) => child !== null && child !== undefined)));
  return element;
}

/**
 * A list to choose from; `choices` are [value, words].
 * @param {string} name
 * @param {string} words
 * @param {string[][]} choices
 * @param {string} value
 * @param {(value: string) => void} onChoice
 */
export function makeChoice(name, words, choices, value, onChoice, hint = "") {
  const select = make(
    "select",
    { id: `choice-${name}`, name, on: { change: () => onChoice(select.value) } },
    ...choices.map(([each, label]) => make("option", { value: each, selected: each === value }, label)),
  );
  return makeField(select, words, hint);
}

/**
 * A control with its name above and what it does below.
 * @param {HTMLElement} control
 * @param {string} words
 */
export function makeField(control, words, hint = "") {
  const field = make("div", { class: "field" }, make("label", { for: control.id }, words), control);
  if (hint) {
    const id = `${control.id}-hint`;
    control.setAttribute("aria-describedby", id);
    field.append(make("p", { class: "hint", id }, hint));
  }
  return field;
}

/**
 * @param {any} element
 * @param {Record<string, any>} properties
 * @param {Child[]} children
 */
function dress(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "aria") for (const [key, said] of Object.entries(value)) element.setAttribute(`aria-${key}`, said);
    else if (name === "style") for (const [key, said] of Object.entries(value)) element.style.setProperty(key, said);
    else if (["value", "checked", "selected", "disabled", "hidden", "open"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
