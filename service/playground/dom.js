// Helpers that create, find and fill elements.

/** Create an element with attributes, handlers (`onclick`) and children; null is left out. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  return fill(dress(element, attributes), ...children);
}

/** Create an SVG element likewise. */
export function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  return fill(dress(element, attributes), ...children);
}

/** Replace the children of an element; strings become text. */
export function fill(element, ...children) {
  const all = children.flat(Infinity).filter((child) => child != null);
  element.replaceChildren(...all.map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

/** A text in which marks that would reverse the sentence around it are seen, as �. */
const visible = (text) => String(text).replace(DIRECTIONS, "\ufffd");

/** Unicode's embeddings, overrides and isolates. Right-to-left letters need none of them. */
export const DIRECTIONS = /[\u202a-\u202e\u2066-\u2069]/g;

export const find = (id) => document.getElementById(id);

/** A colour of style.css, in the current colour scheme. */
export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A share in percent; the space before the sign does not break. */
export const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

/** The index of the largest number. */
export const best = (numbers) => numbers.indexOf(Math.max(...numbers));

function dress(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) element.setAttribute(name, value);
  }
  return element;
}
