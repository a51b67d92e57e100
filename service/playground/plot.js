// Line charts over the steps of a sequence, drawn by uPlot.

import { colour, fill, make } from "./dom.js";
import { dash, dashed, paint, stroke } from "./palette.js";

const HEIGHT = 220; // px
const LEFT = 58; // px, for the axis
const RIGHT = 12;

/**
 * Draw or update a chart; it follows the width and the colour scheme of the page.
 *
 * @param {string} title heading, and label for screen readers
 * @param {number[]} x steps
 * @param {{name: string, values: (number | null)[], place?: number}[]} series `place`: of
 *   the class whose colour the line has
 * @param {object} options `range` of y, `sync` with other plots, `unit` of x, `end`: last x
 */
export function plot(box, title, x, series, options = {}) {
  box.ends = [x[0] - 0.5, (options.end ?? x.at(-1)) + 0.5];
  const data = [x, ...series.map(({ values }) => values)];
  const key = JSON.stringify([title, series.map(({ name, place }) => [name, place])]);
  reuse(box, key, data, () => {
    fill(box, make("h3", {}, title));
    return settings(box, series, options);
  });
  describe(box, title);
  // The legend shows each line's colour and dashes.
  [...box.querySelectorAll(".u-legend .u-marker")].slice(1).forEach((marker, at) => {
    const place = series[at].place ?? at;
    marker.className = `u-marker ${dashed(place)}`;
    marker.style.border = "0";
    marker.style.backgroundColor = paint(place);
  });
}

/**
 * Draw or update a low chart of one line, without a legend.
 *
 * @param {object} options `sync`, `end`, `height` in px, `axis`: true for an axis of x, and
 *   `onValue`, which gets the value at the pointer, or null
 */
export function row(box, title, x, values, options) {
  box.ends = [x[0] - 0.5, options.end + 0.5];
  box.extent = [Math.min(...values), Math.max(...values)];
  reuse(box, JSON.stringify([title, options.axis]), [x, values], () => {
    fill(box);
    return rowSettings(box, options);
  });
  describe(box, `${title}: ${extent(box.extent)}`);
}

/** The least and the greatest value in words. */
export const extent = ([least, most]) =>
  least === most ? `always ${short(least)}` : `${short(least)} to ${short(most)}`;

/** A number in few characters; at most 7 with three digits. */
export function short(value, digits = 4) {
  const size = Math.abs(value);
  if (size && (size >= 1e6 || size < 1e-3)) {
    return value.toExponential(digits - 2).replace("e+", "e");
  }
  return String(size >= 10 ** digits ? Math.round(value) : Number(value.toPrecision(digits)));
}

/** Give a chart new data; make it anew if its key has changed. */
function reuse(box, key, data, prepare) {
  if (box.plot && box.key === key) return box.plot.setData(data);
  box.plot?.destroy();
  box.key = key;
  const options = prepare();
  box.high = options.height;
  box.plot = new uPlot(options, data, box);
  resize.observe(box);
}

function describe(box, title) {
  const canvas = box.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title);
}

function settings(box, series, { range, sync, unit = "step" }) {
  return {
    ...common(box, sync),
    height: HEIGHT,
    padding: [10, RIGHT, 0, 0],
    scales: { x: { time: false, range: () => box.ends }, y: range ? { range } : {} },
    axes: [steps(unit), { ...axis(), size: LEFT }],
    series: [
      { label: unit },
      ...series.map(({ name, place }, at) => ({
        label: name,
        stroke: () => stroke(place ?? at),
        dash: dash(place ?? at),
        width: 2,
        value: (_, value) => (value == null ? "–" : value.toPrecision(3)),
      })),
    ],
  };
}

function rowSettings(box, { sync, height, axis: shown, onValue }) {
  const range = () => {
    const [least, most] = box.extent;
    return least === most ? [least - 1, most + 1] : [least, most];
  };
  return {
    ...common(box, sync),
    height: height + (shown ? 40 : 0),
    padding: [8, RIGHT, shown ? 0 : 8, 0],
    legend: { show: false },
    scales: { x: { time: false, range: () => box.ends }, y: { range } },
    hooks: {
      setCursor: [({ cursor: { idx }, data }) => onValue(idx == null ? null : data[1][idx])],
    },
    axes: [
      shown ? steps("step") : { ...axis(), size: 0, values: () => [], ticks: { show: false } },
      {
        ...axis(),
        size: LEFT,
        splits: () => [...new Set(box.extent)],
        values: (_, values) => values.map((value) => short(value, 3)),
        ticks: { show: false },
      },
    ],
    series: [{}, { stroke: () => colour("ink"), width: 1.5, points: { show: false } }],
  };
}

const common = (box, sync) => ({
  width: box.clientWidth || 600,
  cursor: { sync: sync && { key: sync }, drag: { x: false, y: false } },
});

const axis = () => ({
  stroke: () => colour("quiet"),
  grid: { stroke: () => colour("line"), width: 1 },
});

const steps = (unit) => ({ ...axis(), label: unit, labelSize: 18, size: 32, incrs: INCREMENTS });

const INCREMENTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];

const resize = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (contentRect.width) target.plot?.setSize({ width: contentRect.width, height: target.high });
  }
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const box of document.querySelectorAll(".plot")) box.plot?.redraw();
});

/**
 * The classes of a sequence's steps, as a strip under a chart.
 *
 * @param {string[]} labels of the steps
 * @param {string[]} classes of the model, which have the colours
 */
export function ribbon(labels, classes) {
  const parts = runs(labels).map(({ value: label, from, to }) => {
    const place = classes.indexOf(label);
    const kind = place < 0 ? "unknown" : dashed(place);
    const title = `${label || "no label"}: ${span(from, to)}`;
    const part = make("span", { class: `run ${kind}`, title }, label);
    if (place >= 0) part.style.backgroundColor = paint(place);
    part.style.flexGrow = to - from + 1;
    return part;
  });
  return make("div", { class: "ribbon" }, parts);
}

/** Runs of equal values: {value, from, to}, with steps that count from 1. */
export function runs(values) {
  const all = [];
  values.forEach((value, at) => {
    if (all.length && all.at(-1).value === value) all.at(-1).to = at + 1;
    else all.push({ value, from: at + 1, to: at + 1 });
  });
  return all;
}

export const span = (from, to) => (from === to ? `step ${from}` : `steps ${from} to ${to}`);

/** An element as wide as a chart's lines; before it, where a chart has its axis, a name. */
export function aligned(element, name = "") {
  const line = make("div", { class: "aligned" }, make("small", {}, name), element);
  line.style.gridTemplateColumns = `${LEFT}px minmax(0, 1fr)`;
  line.style.marginRight = `${RIGHT}px`;
  return line;
}
