// The features of a sequence: a chart each with its own scale, or a heat map of many.

import { fill, make } from "../dom.js";
import { aligned, extent, row, short } from "../plot.js";

const RECORDS = 100; // most rows of the table of records
const ROWS = 12; // most features with a chart
const TALL = 64; // px of a chart; less where there are many
const LOW = 44;
const COLUMNS = 1000; // most columns of the heat map: long sequences are thinned out
const CELL = [3, 12]; // px of a row of the heat map, at least and at most
const SIZE = 300; // px of the heat map, where that is possible

/**
 * @param {number[][]} frames of a sequence
 * @param {string[]} names of the features
 * @param {string} sync key of the charts that share a cursor
 */
export function features(box, frames, names, sync) {
  const kind = names.length > ROWS ? "map" : "rows";
  if (box.dataset.kind !== kind || box.names !== names) {
    clear(box);
    box.dataset.kind = kind;
    box.names = names;
  }
  if (kind === "map") heatMap(box, frames, names);
  else rows(box, frames, names, sync);
}

function clear(box) {
  for (const { plot } of box.querySelectorAll(".plot")) plot?.destroy();
  box.names = null;
  fill(box);
}

/** A text. */
export function text(box, letters) {
  clear(box);
  fill(box, make("p", { class: "typed" }, letters.join("")));
}

/** A table of the first records. */
export function records(box, all, names) {
  clear(box);
  const cells = (record) => names.map((name) => make("td", {}, String(record[name] ?? "–")));
  const shown = all.slice(0, RECORDS).map((record) => make("tr", {}, cells(record)));
  const head = make("thead", {}, make("tr", {}, names.map((name) => make("th", { scope: "col" }, name))));
  const more = all.length > RECORDS ? `The first ${RECORDS} of ${all.length.toLocaleString("en")}.` : null;
  fill(
    box,
    make("h3", {}, "Records"),
    make(
      "div",
      { class: "scroll answers", tabindex: "0", role: "region", "aria-label": "Records" },
      make("table", {}, head, make("tbody", {}, shown)),
    ),
    more ? make("p", { class: "quiet" }, more) : null,
  );
}

function rows(box, frames, names, sync) {
  if (!box.children.length) {
    const title = names.length > 1 ? "Features, each with its own scale" : "Feature";
    fill(box, make("h3", {}, title), names.map(emptyRow));
  }
  const x = frames.map((_, step) => step + 1);
  names.forEach((name, place) => {
    const [head, chart] = box.children[place + 1].children;
    const [, range] = head.querySelectorAll("strong, span");
    const values = frames.map((frame) => frame[place]);
    const ends = extent([Math.min(...values), Math.max(...values)]);
    range.textContent = ends;
    row(chart, name, x, values, {
      sync,
      end: frames.length,
      height: names.length > ROWS / 2 ? LOW : TALL,
      axis: place === names.length - 1,
      onValue: (value) => {
        range.textContent = value == null ? ends : `${ends}; here ${short(value)}`;
      },
    });
  });
}

function emptyRow(name) {
  const head = make("p", { class: "feature" }, make("strong", {}, name), make("span"));
  return make("div", {}, aligned(head), make("div", { class: "plot" }));
}

/** More ink is a greater value, on the scale of each feature. */
function heatMap(box, frames, names) {
  const columns = Math.min(frames.length, COLUMNS);
  const stepOf = (column) => Math.floor((column * frames.length) / columns);
  const high = Math.min(CELL[1], Math.max(CELL[0], Math.floor(SIZE / names.length)));
  const canvas = make("canvas", { role: "img", class: "map" });
  canvas.setAttribute(
    "aria-label",
    `Heat map of ${names.length} features by ${frames.length} steps`,
  );
  [canvas.width, canvas.height] = [columns, names.length];
  canvas.style.height = `${high * names.length}px`;
  const pen = canvas.getContext("2d");
  names.forEach((_, place) => {
    const values = frames.map((frame) => frame[place]);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    for (let column = 0; column < columns && most > least; column++) {
      pen.globalAlpha = (values[stepOf(column)] - least) / (most - least);
      pen.fillRect(column, place, 1, 1);
    }
  });
  const said = make("p", { class: "feature" }, hint(names));
  canvas.onpointermove = ({ clientX, clientY }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const step = stepOf(Math.min(columns - 1, Math.floor(((clientX - left) / width) * columns)));
    const place = Math.floor(((clientY - top) / height) * names.length);
    const value = frames[step]?.[place];
    if (value != null) fill(said, `${names[place]}, step ${step + 1}: ${short(value)}`);
  };
  canvas.onpointerleave = () => fill(said, hint(names));
  const title = `${names.length} features, a row each with its own scale`;
  fill(box, make("h3", {}, title), aligned(canvas), aligned(said));
}

const hint = (names) => `From “${names[0]}” (top) to “${names.at(-1)}”; point at a cell for its value.`;
