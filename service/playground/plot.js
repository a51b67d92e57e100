// Line charts over the steps of a sequence, drawn by uPlot.

import { colour, fill, make } from "./dom.js";

const HEIGHT = 220; // px
const LEFT = 52; // px, for the axis; the ribbon begins there too
const RIGHT = 12;
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]]; // lines differ by more than colour
const COLOURS = 7;

/**
 * Draw or update a chart; it follows the width and the colour scheme of the page.
 *
 * @param {string} title heading, and label for screen readers
 * @param {number[]} x steps
 * @param {{name: string, values: (number | null)[]}[]} series
 * @param {object} options `range` of y, `sync` with other plots, `unit` of x
 */
export function plot(box, title, x, series, options = {}) {
  const names = JSON.stringify([title, series.map(({ name }) => name)]);
  const data = [x, ...series.map(({ values }) => values)];
  box.ends = [x[0] - 0.5, (options.end ?? x.at(-1)) + 0.5];
  if (box.plot && box.names === names) return box.plot.setData(data);
  box.plot?.destroy();
  box.names = names;
  fill(box, make("h3", {}, title));
  box.plot = new uPlot(settings(box, series, options), data, box);
  const canvas = box.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title);
  resize.observe(box);
}

function settings(box, series, { range, sync, unit = "step" }) {
  const axis = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 } };
  return {
    width: box.clientWidth || 600,
    height: HEIGHT,
    padding: [10, RIGHT, 0, 0],
    scales: { x: { time: false, range: () => box.ends }, y: range ? { range } : {} },
    cursor: { sync: sync && { key: sync }, drag: { x: false, y: false } },
    axes: [
      { ...axis, label: unit, labelSize: 18, size: 32, incrs: INCREMENTS },
      { ...axis, size: LEFT },
    ],
    series: [
      { label: unit },
      ...series.map(({ name }, at) => ({
        label: name,
        stroke: () => colour(`series-${at % COLOURS}`),
        dash: DASHES[at % DASHES.length],
        width: 2,
        value: (_, value) => (value == null ? "–" : value.toPrecision(3)),
      })),
    ],
  };
}

const INCREMENTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

const resize = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (contentRect.width) target.plot?.setSize({ width: contentRect.width, height: HEIGHT });
  }
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const box of document.querySelectorAll(".plot")) box.plot?.redraw();
});

/** The classes of a sequence's steps as a ribbon under a chart. */
export function ribbon(box, labels, classes) {
  const runs = [];
  for (const label of labels) {
    if (runs.at(-1)?.label === label) runs.at(-1).steps++;
    else runs.push({ label, steps: 1 });
  }
  const parts = runs.map(({ label, steps }) => {
    const place = classes.indexOf(label) % COLOURS;
    const part = make("span", { class: `run run-${place}`, title: `${label}: ${steps} steps` }, label);
    part.style.flexGrow = steps;
    return part;
  });
  const strip = make("div", { class: "ribbon" }, parts);
  strip.style.marginLeft = `${LEFT}px`;
  strip.style.marginRight = `${RIGHT}px`;
  fill(box, make("h3", {}, "Class of each step"), strip);
}
