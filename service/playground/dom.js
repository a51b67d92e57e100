// Elements, made and found in one line.

/** An element with attributes, handlers (`onclick`) and children; null is left out. */
export function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return fill(dress(made, attributes), ...children);
}

/** The same in SVG. */
export function draw(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  return fill(dress(made, attributes), ...children);
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

export const find = (id) => document.getElementById(id);

/** A colour of style.css, as it is in this light. */
export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** The place of the largest number. */
export const best = (numbers) => numbers.indexOf(Math.max(...numbers));

function dress(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) made.setAttribute(name, value);
  }
  return made;
}
