// A heat map of probabilities: a line per step, a column per class in its colour, darker is
// likelier.

import { best, draw, fill } from "../dom.js";
import { paint } from "../palette.js";

const CELL = 12;

/** The first step (from 1) after which the likeliest class no longer changed. */
export function decided(history) {
  const end = best(history.at(-1));
  let step = history.length;
  while (step > 1 && best(history[step - 2]) === end) step--;
  return step;
}

/** The probabilities of all classes after each step, as an SVG. */
export class Heat {
  #cells;
  #mark;

  constructor(svg, classes, steps) {
    const [width, height] = [classes.length * CELL, steps * CELL];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg = svg;
    this.classes = classes;
    this.#cells = Array.from({ length: steps }, (_, step) =>
      classes.map((_, place) => cell(place, step)),
    );
    this.#mark = draw("line", { x1: 0, x2: width, class: "mark" });
    fill(svg, ...this.#cells, this.#mark);
    this.show([]);
  }

  /** Show the probabilities after each step so far; `step` (from 1) is marked. */
  show(history, step = 0) {
    this.#cells.forEach((row, at) => {
      row.forEach((cell, place) => {
        cell.style.fillOpacity = history[at]?.[place] ?? 0;
      });
    });
    this.#mark.setAttribute("y1", step * CELL - 0.5);
    this.#mark.setAttribute("y2", step * CELL - 0.5);
    this.#mark.style.visibility = step ? "visible" : "hidden";
    const summary = history.length
      ? `after row ${history.length} the likeliest class is ${this.classes[best(history.at(-1))]}`
      : "no row read yet";
    this.svg.setAttribute("aria-label", `Heat map, classes by rows: ${summary}`);
  }
}

function cell(place, step) {
  const [x, y] = [place * CELL, step * CELL];
  const rect = draw("rect", { x, y, width: CELL - 1, height: CELL - 1 });
  rect.style.fill = paint(place);
  return rect;
}
